/*
 * UDP, which micro's nc does not speak:
 *
 *   datagrams PORT                  prints what arrives there, a line for each datagram
 *   datagrams PORT HEX ADDRESS...   sends one, given in hexadecimal, to each address, broadcast addresses too; prints "ADDRESS sent",
 *                                   or why not
 */
#include <arpa/inet.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#define LONGEST 1400

static int receive(int s, in_port_t port)
{
	char data[LONGEST];
	struct sockaddr_in here = { .sin_family = AF_INET, .sin_port = port };
	if (bind(s, (struct sockaddr *)&here, sizeof(here)) < 0)
		return 1;
	setlinebuf(stdout);
	for (;;) {
		ssize_t size = recv(s, data, sizeof(data), 0);
		if (size < 0)
			return 1;
		printf("%.*s\n", (int)size, data);
	}
}

int main(int argc, char **argv)
{
	unsigned char data[LONGEST];
	size_t size = 0;
	if (argc < 2 || argc == 3)
		return 2;
	in_port_t port = htons(atoi(argv[1]));
	int s = socket(AF_INET, SOCK_DGRAM, 0), yes = 1;
	if (s < 0 || setsockopt(s, SOL_SOCKET, SO_BROADCAST, &yes, sizeof(yes)) < 0)
		return 1;
	if (argc == 2)
		return receive(s, port);
	for (const char *hex = argv[2]; size < LONGEST && sscanf(hex, "%2hhx", &data[size]) == 1; hex += 2)
		size++;
	for (int i = 3; i < argc; i++) {
		struct sockaddr_in to = { .sin_family = AF_INET, .sin_port = port };
		if (inet_pton(AF_INET, argv[i], &to.sin_addr) != 1)
			return 2;
		ssize_t sent = sendto(s, data, size, 0, (struct sockaddr *)&to, sizeof(to));
		printf("%s %s\n", argv[i], sent == (ssize_t)size ? "sent" : strerror(errno));
	}
	return 0;
}
