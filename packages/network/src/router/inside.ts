// Runs for a moment inside the new network namespace of a router, and hands out what can only be made there: the socket of the name
// server. The router itself stays in the host's namespace, from where name servers of the host can be asked, those on its loopback too.

import { createSocket } from 'node:dgram';
import { writeFileSync } from 'node:fs';

const DNS_PORT = 53;

writeFileSync('/proc/sys/net/ipv6/conf/all/disable_ipv6', '1');
writeFileSync('/proc/sys/net/ipv4/ip_forward', '1');
const socket = createSocket('udp4');
socket.bind(DNS_PORT, '0.0.0.0', () => process.send?.('bound', socket));
process.on('message', () => process.exit(0));
process.on('disconnect', () => process.exit(0));
