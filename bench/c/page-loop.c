// The memtap's fault path and nothing else, in C with libfuse's low-level API: what bench distribution, part `loop`, compares the memtap with.
//
//   page-loop MOUNT PORT KEY_HEX PAGES      MOUNT/ram: the RAM that the memserver at 127.0.0.1:PORT has frozen
//
//   this thread     /dev/fuse --READ--> slot --READ, urgent--> lane           (in the memtap: read-worker.ts, demand-sender.ts)
//   lane thread     lane --DATA--> slot --reply--> page cache                 (lane.ts, fetcher.ts, held-reads.ts)
//
// As in the memtap: any number of READs at a time, a lane that both ends prove themselves on, the page cache as the only store, no read-ahead by
// the kernel. Not here: page states, so that two READs of one page share a request; read-ahead, STOREs, the disk, a lane that mends; figures.
// Prints "ready" when mounted; ends on SIGTERM, or with its lane.
#define FUSE_USE_VERSION 314
#include <arpa/inet.h>
#include <err.h>
#include <errno.h>
#include <fuse_lowlevel.h>
#include <netinet/tcp.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <openssl/rand.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

// packages/protocol/src/page-wire.ts
enum { PAGE = 4096, HEADER = 20, MAX_PAGES = 256, READ_FRAME = 1, DATA_FRAME = 2, FROZEN_FRAME = 6, URGENT = 1 };
enum { MAGIC_BYTES = 8, NONCE = 32, MAC = 32, KEY = 32 };
struct frame {
  uint32_t length;
  uint8_t type, region, flags, zero;
  uint16_t page_count, data_pages;
  uint32_t request_id, first_page;
};
_Static_assert(sizeof(struct frame) == HEADER, "a frame's header has no padding");

// packages/replication/src/memtap: lane.ts, shared-state.ts, fuse/protocol.ts
enum { RECEIVE_BYTES = 4 * (HEADER + MAX_PAGES / 8 + MAX_PAGES * PAGE), SLOTS = 4096 };
enum { RAM_NODE = 2, MAX_BACKGROUND = 64, VALID_SECONDS = 3600 };

static int lane;
static uint64_t file_bytes;
static struct fuse_session *session;
// Set by the thread that reads /dev/fuse, cleared by the lane's: a READ that waits. Its request id is its index.
static _Atomic(fuse_req_t) waiting[SLOTS];
static uint8_t zero_page[PAGE];

static void receive_all(void *to, size_t length) {
  if (recv(lane, to, length, MSG_WAITALL) != (ssize_t)length) errx(1, "the memserver closed the lane");
}

static void send_all(const void *from, size_t length) {
  if (send(lane, from, length, MSG_NOSIGNAL) != (ssize_t)length) err(1, "the lane took no request");
}

static void prove(const uint8_t *key, const char *side, const uint8_t *server, const uint8_t *client, uint8_t *mac) {
  uint8_t text[64 + 2 * NONCE];
  int label = snprintf((char *)text, 64, "snowflock page wire 1 %s\n", side);
  memcpy(text + label, server, NONCE);
  memcpy(text + label + NONCE, client, NONCE);
  unsigned length = MAC;
  if (!HMAC(EVP_sha256(), key, KEY, text, label + 2 * NONCE, mac, &length)) errx(1, "no HMAC-SHA256");
}

static void open_lane(uint16_t port, const uint8_t *key) {
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  lane = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (lane < 0 || connect(lane, (void *)&address, sizeof address) != 0) err(1, "port %u", port);
  int yes = 1;
  setsockopt(lane, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
  uint8_t hello[MAGIC_BYTES + NONCE], proof[NONCE + MAC], welcome[MAC], expected[MAC];
  receive_all(hello, sizeof hello);
  if (RAND_bytes(proof, NONCE) != 1) errx(1, "no random bytes");
  prove(key, "client", hello + MAGIC_BYTES, proof, proof + NONCE);
  send_all(proof, sizeof proof);
  receive_all(welcome, sizeof welcome);
  prove(key, "server", hello + MAGIC_BYTES, proof, expected);
  if (memcmp(welcome, expected, MAC) != 0) errx(1, "the memserver does not hold the key");
  struct frame frozen;
  receive_all(&frozen, sizeof frozen);
  if (frozen.type != FROZEN_FRAME) errx(1, "the memserver has no snapshot");
}

static void answer(const struct frame *frame) {
  if (frame->type != DATA_FRAME || frame->request_id >= SLOTS) errx(1, "a frame of type %u", frame->type);
  fuse_req_t request = atomic_exchange(&waiting[frame->request_id], NULL);
  if (!request) errx(1, "an answer that nobody waits for");
  const uint8_t *bitmap = (const uint8_t *)(frame + 1);
  const uint8_t *data = bitmap + (frame->page_count + 31) / 32 * 4;
  struct iovec pages[MAX_PAGES];
  for (unsigned index = 0; index < frame->page_count; index++) {
    int present = bitmap[index / 8] >> index % 8 & 1;
    pages[index] = (struct iovec){.iov_base = present ? (void *)data : zero_page, .iov_len = PAGE};
    if (present) data += PAGE;
  }
  fuse_reply_iov(request, pages, frame->page_count);
}

static void *serve_lane(void *unused) {
  static uint8_t bytes[RECEIVE_BYTES];
  size_t start = 0, end = 0;
  for (;;) {
    ssize_t got = recv(lane, bytes + end, RECEIVE_BYTES - end, 0);
    if (got <= 0) errx(1, "the memserver closed the lane");
    end += got;
    while (end - start >= HEADER) {
      struct frame *frame = (struct frame *)(bytes + start);
      if (frame->length < HEADER || frame->length > RECEIVE_BYTES / 4) errx(1, "a frame of %u bytes", frame->length);
      if (end - start < frame->length) break;
      answer(frame);
      start += frame->length;
    }
    if (start == end) start = end = 0;
    else if (RECEIVE_BYTES - end < RECEIVE_BYTES / 4) {
      memmove(bytes, bytes + start, end - start);
      end -= start;
      start = 0;
    }
  }
  return unused;
}

static void on_read(fuse_req_t request, fuse_ino_t node, size_t size, off_t offset, struct fuse_file_info *file) {
  (void)node, (void)file;
  if (offset % PAGE != 0 || size % PAGE != 0 || offset + size > file_bytes) return (void)fuse_reply_err(request, EIO);
  static unsigned cursor;
  while (atomic_load(&waiting[cursor % SLOTS])) cursor++;
  unsigned slot = cursor++ % SLOTS;
  // before it is sent: the answer must find it
  atomic_store(&waiting[slot], request);
  struct frame frame = {.length = HEADER, .type = READ_FRAME, .flags = URGENT, .page_count = size / PAGE};
  frame.request_id = slot;
  frame.first_page = offset / PAGE;
  send_all(&frame, sizeof frame);
}

static struct stat attributes(fuse_ino_t node) {
  int root = node == FUSE_ROOT_ID;
  return (struct stat){.st_ino = node, .st_mode = root ? S_IFDIR | 0700 : S_IFREG | 0600, .st_nlink = 1, .st_size = root ? PAGE : file_bytes};
}

static void on_init(void *unused, struct fuse_conn_info *connection) {
  (void)unused;
  connection->max_readahead = PAGE;
  connection->max_read = MAX_PAGES * PAGE;
  connection->max_background = MAX_BACKGROUND;
}

static void on_lookup(fuse_req_t request, fuse_ino_t parent, const char *name) {
  if (parent != FUSE_ROOT_ID || strcmp(name, "ram") != 0) return (void)fuse_reply_err(request, ENOENT);
  struct fuse_entry_param entry = {.ino = RAM_NODE, .attr = attributes(RAM_NODE)};
  entry.attr_timeout = entry.entry_timeout = VALID_SECONDS;
  fuse_reply_entry(request, &entry);
}

static void on_getattr(fuse_req_t request, fuse_ino_t node, struct fuse_file_info *file) {
  (void)file;
  struct stat found = attributes(node);
  fuse_reply_attr(request, &found, VALID_SECONDS);
}

static void on_open(fuse_req_t request, fuse_ino_t node, struct fuse_file_info *file) {
  (void)node;
  file->keep_cache = 1;
  fuse_reply_open(request, file);
}

static const struct fuse_lowlevel_ops operations = {
    .init = on_init, .lookup = on_lookup, .getattr = on_getattr, .open = on_open, .read = on_read};

int main(int argc, char **argv) {
  uint8_t key[KEY];
  if (argc != 5 || strlen(argv[3]) != 2 * KEY) errx(2, "usage: page-loop MOUNT PORT KEY_HEX PAGES");
  for (int i = 0; i < KEY; i++) sscanf(argv[3] + 2 * i, "%2hhx", &key[i]);
  file_bytes = strtoull(argv[4], NULL, 10) * PAGE;
  open_lane(atoi(argv[2]), key);

  char *words[] = {argv[0], "-o", "allow_other,max_read=1048576,fsname=page-loop"};
  struct fuse_args arguments = FUSE_ARGS_INIT(3, words);
  session = fuse_session_new(&arguments, &operations, sizeof operations, NULL);
  pthread_t lane_thread;
  if (!session || fuse_set_signal_handlers(session) != 0 || fuse_session_mount(session, argv[1]) != 0) errx(1, "cannot mount %s", argv[1]);
  if (pthread_create(&lane_thread, NULL, serve_lane, NULL) != 0) errx(1, "no thread");
  puts("ready");
  fflush(stdout);
  int status = fuse_session_loop(session);
  fuse_session_unmount(session);
  return status != 0;
}
