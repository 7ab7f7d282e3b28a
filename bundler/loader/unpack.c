/* The first instructions of the one-file installer: puts Python's own start into a private folder
 * and goes on there.
 *
 * It is a static program without a C library, since the machine may have none, no shell and no
 * /proc. bundler/freeze.py appends a table and a zip archive; the table says where in the archive
 * the files lie that are needed here. What lies in the folder from an earlier start is hashed and
 * written anew where it differs: nothing there is believed. The folder and everything above it must
 * be such that only this user, or root, can write.
 *
 * The two programs beside this file are made from it by `make loader`; a test makes them again and
 * compares.
 */
typedef unsigned long u64;
typedef unsigned int u32;
typedef unsigned char u8;

#if defined(__x86_64__)
enum {
  SYS_open = 257, SYS_write = 1, SYS_close = 3, SYS_mmap = 9, SYS_munmap = 11, SYS_getpid = 39,
  SYS_execve = 59, SYS_exit = 231, SYS_getcwd = 79, SYS_fchdir = 81, SYS_geteuid = 107,
  SYS_umask = 95, SYS_fstatfs = 138, SYS_mkdirat = 258, SYS_unlinkat = 263, SYS_renameat = 264,
  SYS_readlinkat = 267, SYS_newfstatat = 262
};
struct stat {
  u64 dev, ino, nlink;
  u32 mode, uid, gid, pad;
  u64 rdev;
  long size;
  u64 rest[11];
};
enum { O_DIRECTORY = 0200000, O_NOFOLLOW = 0400000 };
static inline long call(long n, long a, long b, long c, long d, long e, long f) {
  long result;
  register long r10 __asm__("r10") = d, r8 __asm__("r8") = e, r9 __asm__("r9") = f;
  __asm__ volatile("syscall" : "=a"(result)
                   : "a"(n), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                   : "rcx", "r11", "memory");
  return result;
}
__asm__(".globl _start\n_start:\n xor %ebp, %ebp\n mov %rsp, %rdi\n and $-16, %rsp\n call begin\n");
#elif defined(__aarch64__)
enum {
  SYS_open = 56, SYS_write = 64, SYS_close = 57, SYS_mmap = 222, SYS_munmap = 215,
  SYS_getpid = 172, SYS_execve = 221, SYS_exit = 94, SYS_getcwd = 17, SYS_fchdir = 50,
  SYS_geteuid = 175, SYS_umask = 166, SYS_fstatfs = 44, SYS_mkdirat = 34, SYS_unlinkat = 35,
  SYS_renameat = 38, SYS_readlinkat = 78, SYS_newfstatat = 79
};
struct stat {
  u64 dev, ino;
  u32 mode, nlink, uid, gid;
  u64 rdev, pad;
  long size;
  u64 rest[12];
};
enum { O_DIRECTORY = 040000, O_NOFOLLOW = 0100000 };
static inline long call(long n, long a, long b, long c, long d, long e, long f) {
  register long x8 __asm__("x8") = n, x0 __asm__("x0") = a, x1 __asm__("x1") = b;
  register long x2 __asm__("x2") = c, x3 __asm__("x3") = d, x4 __asm__("x4") = e;
  register long x5 __asm__("x5") = f;
  __asm__ volatile("svc 0" : "+r"(x0)
                   : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5) : "memory");
  return x0;
}
__asm__(".globl _start\n_start:\n mov x29, #0\n mov x0, sp\n bl begin\n");
#else
#error "another architecture needs its numbers of system calls here"
#endif

enum {
  O_WRONLY = 1, O_CREAT = 0100, O_EXCL = 0200, O_NONBLOCK = 04000, O_CLOEXEC = 02000000,
  O_PATH = 010000000, AT_FDCWD = -100, AT_EMPTY_PATH = 0x1000,
  S_IFMT = 0170000, S_IFREG = 0100000, S_ISVTX = 01000,
  PROT_READ = 1, PROT_WRITE = 2, MAP_PRIVATE = 2, MAP_ANONYMOUS = 0x20, MAP_POPULATE = 0x8000,
  AT_SECURE = 23, AT_EXECFN = 31, ST_NOEXEC = 8, EEXIST = 17, PATH = 4096
};

/* What bundler/freeze.py writes: the place of the table, in bytes from the start of the file, is
 * patched into this program, so the compiler must not believe that it is zero. */
struct entry { u64 offset, packed, size; u8 blake2b[32]; char name[72]; };
struct table { char magic[16]; u64 count, whole; char key[40]; struct entry entries[]; };
static const struct { char magic[16]; u64 table; } place = {"AIRGAP-LOADER-1", 0};

static const char DAMAGED[] = "not all of it was copied: compare its sha256 with bundle.json";

struct self {
  const u8 *bytes;
  const struct table *table;
  char path[PATH];
  char *const *argv;
  char *const *envp;
  u64 argc, envc;
  u32 user;
  int origin;
};

void *memset(void *to, int value, u64 size) {
  for (u64 i = 0; i < size; i++) ((volatile u8 *)to)[i] = (u8)value;
  return to;
}
void *memcpy(void *to, const void *from, u64 size) {
  for (u64 i = 0; i < size; i++) ((volatile u8 *)to)[i] = ((const u8 *)from)[i];
  return to;
}

static u64 length(const char *text) {
  u64 n = 0;
  while (text[n]) n++;
  return n;
}
static int starts(const char *text, const char *with) {
  while (*with) if (*text++ != *with++) return 0;
  return 1;
}
/* Appends to a text of PATH bytes; a text that is too long becomes empty, which no file is. */
static void add(char *text, const char *more) {
  u64 n = length(text), m = length(more);
  if (n + m >= PATH) { text[0] = 0; return; }
  for (u64 i = 0; i <= m; i++) text[n + i] = more[i];
}
static void add_number(char *text, u64 number) {
  char digits[24];
  int i = 23;
  digits[i] = 0;
  do digits[--i] = (char)('0' + number % 10); while (number /= 10);
  add(text, digits + i);
}
static void say(const char *text) { call(SYS_write, 2, (long)text, (long)length(text), 0, 0, 0); }
static void end(const char *why, const char *hint, int code) __attribute__((noreturn));
static void end(const char *why, const char *hint, int code) {
  say("error: "); say(why); say("\nhint: "); say(hint); say("\n");
  for (;;) call(SYS_exit, code, 0, 0, 0, 0, 0);
}
static int open_at(int folder, const char *name, int flags, int mode) {
  return (int)call(SYS_open, folder, (long)name, flags | O_CLOEXEC, mode, 0, 0);
}
static void close_it(int fd) { call(SYS_close, fd, 0, 0, 0, 0, 0); }
static int look(int fd, struct stat *status) {
  return (int)call(SYS_newfstatat, fd, (long)"", (long)status, AT_EMPTY_PATH, 0, 0);
}
/* Maps a file, or memory if `fd` is -1; gives 0 if that fails. */
static void *map(u64 size, int fd, int flags) {
  int access = fd < 0 ? PROT_READ | PROT_WRITE : PROT_READ;
  long at = call(SYS_mmap, 0, (long)size, access, MAP_PRIVATE | flags, fd, 0);
  return at < 0 && at > -4096 ? 0 : (void *)at;
}

static int equal(const u8 *a, const u8 *b, u64 size) {
  for (u64 i = 0; i < size; i++) if (a[i] != b[i]) return 0;
  return 1;
}

/* BLAKE2b with 32 bytes of output and no key (RFC 7693). */
static inline u64 word(const u8 *from) {
  u64 value;
  __builtin_memcpy(&value, from, 8); /* both architectures are little-endian */
  return value;
}
static inline u64 turn(u64 value, int by) { return value >> by | value << (64 - by); }
#define MIX(a, b, c, d, x, y)                                                          \
  a += b + (x); d = turn(d ^ a, 32); c += d; b = turn(b ^ c, 24);                      \
  a += b + (y); d = turn(d ^ a, 16); c += d; b = turn(b ^ c, 63)
static const u8 ORDER[10][16] = {
    {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15},
    {14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3},
    {11, 8, 12, 0, 5, 2, 15, 13, 10, 14, 3, 6, 7, 1, 9, 4},
    {7, 9, 3, 1, 13, 12, 11, 14, 2, 6, 5, 10, 4, 0, 15, 8},
    {9, 0, 5, 7, 2, 4, 10, 15, 14, 1, 11, 12, 6, 8, 3, 13},
    {2, 12, 6, 10, 0, 11, 8, 3, 4, 13, 7, 5, 15, 14, 1, 9},
    {12, 5, 1, 15, 14, 13, 4, 10, 0, 7, 6, 3, 9, 2, 8, 11},
    {13, 11, 7, 14, 12, 1, 3, 9, 5, 0, 15, 4, 8, 6, 2, 10},
    {6, 15, 14, 9, 11, 3, 0, 8, 12, 2, 13, 7, 1, 4, 10, 5},
    {10, 2, 8, 4, 7, 6, 1, 5, 15, 11, 9, 14, 3, 12, 13, 0}};
static void mix_block(u64 h[8], const u8 *block, u64 until, int last) {
  static const u64 START[8] = {
      0x6a09e667f3bcc908, 0xbb67ae8584caa73b, 0x3c6ef372fe94f82b, 0xa54ff53a5f1d36f1,
      0x510e527fade682d1, 0x9b05688c2b3e6c1f, 0x1f83d9abfb41bd6b, 0x5be0cd19137e2179};
  if (!block) {
    for (int i = 0; i < 8; i++) h[i] = START[i];
    h[0] ^= 0x01010000 ^ 32;
    return;
  }
  u64 v[16], m[16];
  for (int i = 0; i < 8; i++) { v[i] = h[i]; v[i + 8] = START[i]; }
  for (int i = 0; i < 16; i++) m[i] = word(block + 8 * i);
  v[12] ^= until;
  if (last) v[14] = ~v[14];
  for (int round = 0; round < 12; round++) {
    const u8 *s = ORDER[round % 10];
    MIX(v[0], v[4], v[8], v[12], m[s[0]], m[s[1]]);
    MIX(v[1], v[5], v[9], v[13], m[s[2]], m[s[3]]);
    MIX(v[2], v[6], v[10], v[14], m[s[4]], m[s[5]]);
    MIX(v[3], v[7], v[11], v[15], m[s[6]], m[s[7]]);
    MIX(v[0], v[5], v[10], v[15], m[s[8]], m[s[9]]);
    MIX(v[1], v[6], v[11], v[12], m[s[10]], m[s[11]]);
    MIX(v[2], v[7], v[8], v[13], m[s[12]], m[s[13]]);
    MIX(v[3], v[4], v[9], v[14], m[s[14]], m[s[15]]);
  }
  for (int i = 0; i < 8; i++) h[i] ^= v[i] ^ v[i + 8];
}
static int has_digest(const u8 *data, const struct entry *entry) {
  u64 h[8], done = 0, rest;
  u8 final[128];
  mix_block(h, 0, 0, 0);
  for (; entry->size - done > 128; done += 128) mix_block(h, data + done, done + 128, 0);
  rest = entry->size - done;
  memset(final, 0, sizeof final);
  memcpy(final, data + done, rest);
  mix_block(h, final, entry->size, 1);
  return equal((const u8 *)h, entry->blake2b, 32);
}

/* Raw DEFLATE (RFC 1951) from and into memory; gives whether it filled `to` exactly. */
struct inflate {
  const u8 *from, *until;
  u8 *to;
  u64 done, size, bits;
  u32 count;
  int failed;
};
struct codes { unsigned short counts[16], symbols[288]; };
static u32 bits(struct inflate *s, u32 need) {
  while (s->count < need) {
    if (s->from == s->until) { s->failed = 1; return 0; }
    s->bits |= (u64)*s->from++ << s->count;
    s->count += 8;
  }
  u32 value = (u32)(s->bits & ((1ul << need) - 1));
  s->bits >>= need;
  s->count -= need;
  return value;
}
static int symbol(struct inflate *s, const struct codes *codes) {
  int code = 0, first = 0, index = 0;
  for (int length = 1; length < 16; length++) {
    code |= (int)bits(s, 1);
    if (s->failed) return 0;
    int count = codes->counts[length];
    if (code - count < first) return codes->symbols[index + code - first];
    index += count;
    first = (first + count) << 1;
    code <<= 1;
  }
  s->failed = 1;
  return 0;
}
static void make_codes(struct codes *codes, const u8 *lengths, int n) {
  unsigned short places[16];
  memset(codes->counts, 0, sizeof codes->counts);
  for (int i = 0; i < n; i++) codes->counts[lengths[i]]++;
  codes->counts[0] = 0;
  places[1] = 0;
  for (int i = 1; i < 15; i++) places[i + 1] = (unsigned short)(places[i] + codes->counts[i]);
  for (int i = 0; i < n; i++) if (lengths[i]) codes->symbols[places[lengths[i]]++] = (unsigned short)i;
}
static void put_block(struct inflate *s, const struct codes *literals, const struct codes *distances) {
  static const unsigned short BASE[29] = {3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 15, 17, 19, 23, 27,
      31, 35, 43, 51, 59, 67, 83, 99, 115, 131, 163, 195, 227, 258};
  static const u8 MORE[29] = {0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4,
      4, 4, 5, 5, 5, 5, 0};
  static const unsigned short BACK[30] = {1, 2, 3, 4, 5, 7, 9, 13, 17, 25, 33, 49, 65, 97, 129,
      193, 257, 385, 513, 769, 1025, 1537, 2049, 3073, 4097, 6145, 8193, 12289, 16385, 24577};
  for (;;) {
    int code = symbol(s, literals);
    if (s->failed || code == 256) return;
    if (code < 256) {
      if (s->done == s->size) { s->failed = 1; return; }
      s->to[s->done++] = (u8)code;
      continue;
    }
    if (code > 285) { s->failed = 1; return; }
    u64 length = BASE[code - 257] + bits(s, MORE[code - 257]);
    int far = symbol(s, distances);
    if (s->failed || far > 29) { s->failed = 1; return; }
    u64 back = BACK[far] + bits(s, far < 2 ? 0 : (u32)far / 2 - 1);
    if (s->failed || back > s->done || length > s->size - s->done) { s->failed = 1; return; }
    for (; length; length--, s->done++) s->to[s->done] = s->to[s->done - back];
  }
}
static void read_codes(struct inflate *s, struct codes *literals, struct codes *distances) {
  static const u8 PLACES[19] = {16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15};
  u8 lengths[320];
  int n = (int)bits(s, 5) + 257, m = (int)bits(s, 5) + 1, k = (int)bits(s, 4) + 4, i = 0;
  memset(lengths, 0, sizeof lengths);
  if (n > 286 || m > 30) { s->failed = 1; return; }
  for (; i < k; i++) lengths[PLACES[i]] = (u8)bits(s, 3);
  make_codes(literals, lengths, 19);
  for (i = 0; i < n + m && !s->failed;) {
    int code = symbol(s, literals), again = 1, value = 0;
    if (code < 16) value = code;
    else if (code == 16) {
      if (!i) { s->failed = 1; return; }
      value = lengths[i - 1];
      again = 3 + (int)bits(s, 2);
    } else again = code == 17 ? 3 + (int)bits(s, 3) : 11 + (int)bits(s, 7);
    if (i + again > n + m) { s->failed = 1; return; }
    while (again--) lengths[i++] = (u8)value;
  }
  make_codes(literals, lengths, n);
  make_codes(distances, lengths + n, m);
}
static int inflate(const u8 *from, u64 packed, u8 *to, u64 size) {
  struct inflate s = {from, from + packed, to, 0, size, 0, 0, 0};
  struct codes literals, distances;
  for (u32 last = 0; !last && !s.failed;) {
    last = bits(&s, 1);
    u32 kind = bits(&s, 2);
    if (kind == 0) {
      s.bits = s.count = 0; /* never more than the rest of one byte */
      u32 n = bits(&s, 16), check = bits(&s, 16);
      if (s.failed || (n ^ check) != 0xffff || n > (u64)(s.until - s.from) || n > size - s.done)
        return 0;
      memcpy(to + s.done, s.from, n);
      s.from += n;
      s.done += n;
    } else if (kind == 1) {
      u8 lengths[288];
      for (int i = 0; i < 288; i++) lengths[i] = i < 144 ? 8 : i < 256 ? 9 : i < 280 ? 7 : 8;
      make_codes(&literals, lengths, 288);
      memset(lengths, 5, 30);
      make_codes(&distances, lengths, 30);
      put_block(&s, &literals, &distances);
    } else if (kind == 2) {
      read_codes(&s, &literals, &distances);
      if (!s.failed) put_block(&s, &literals, &distances);
    } else
      return 0;
  }
  return !s.failed && s.done == size;
}

/* Whether the file is there, of this user alone, and has the digest that this program knows. */
static int is_good(const struct self *self, int folder, const struct entry *entry) {
  struct stat status;
  int fd = open_at(folder, entry->name, O_NOFOLLOW | O_NONBLOCK, 0), good = 0;
  if (fd < 0) return 0;
  if (!look(fd, &status) && (status.mode & S_IFMT) == S_IFREG && status.uid == self->user &&
      (status.mode & 07777) == 0700 && status.nlink == 1 && (u64)status.size == entry->size) {
    void *there = map(entry->size, fd, MAP_POPULATE);
    good = there && has_digest(there, entry);
    if (there) call(SYS_munmap, (long)there, (long)entry->size, 0, 0, 0, 0);
  }
  close_it(fd);
  return good;
}

/* Gives 0, or why the file could not be written. */
static long write_file(const struct self *self, int folder, const struct entry *entry) {
  char name[PATH] = "";
  u8 *data = map(entry->size, -1, MAP_ANONYMOUS);
  if (!data || !inflate(self->bytes + entry->offset, entry->packed, data, entry->size) ||
      !has_digest(data, entry))
    end("this installer is damaged", DAMAGED, 4);
  add(name, entry->name);
  add(name, ".");
  add_number(name, (u64)call(SYS_getpid, 0, 0, 0, 0, 0, 0));
  call(SYS_unlinkat, folder, (long)name, 0, 0, 0, 0);
  int fd = open_at(folder, name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW, 0700);
  if (fd < 0) { call(SYS_munmap, (long)data, (long)entry->size, 0, 0, 0, 0); return fd; }
  long done = 0, failed = 0;
  while ((u64)done < entry->size && !failed) {
    long n = call(SYS_write, fd, (long)data + done,
                  (long)entry->size - done, 0, 0, 0);
    if (n <= 0) failed = n ? n : -5;
    else done += n;
  }
  close_it(fd);
  call(SYS_munmap, (long)data, (long)entry->size, 0, 0, 0, 0);
  if (!failed)
    failed = call(SYS_renameat, folder, (long)name, folder, (long)entry->name, 0, 0);
  if (failed) call(SYS_unlinkat, folder, (long)name, 0, 0, 0, 0);
  return failed;
}

/* Opens a folder that nobody but this user can write to, or gives -1. */
static int open_private(const struct self *self, int where, const char *name) {
  struct stat status;
  int fd = open_at(where, name, O_DIRECTORY | O_NOFOLLOW, 0);
  if (fd < 0) return -1;
  if (!look(fd, &status) && status.uid == self->user && !(status.mode & 077)) return fd;
  close_it(fd);
  return -1;
}

/* Whether nobody else can put another folder in the place of this one, or of one above it. */
static int is_safe_above(const struct self *self, int folder) {
  struct stat here, above;
  int fd = open_at(folder, "..", O_PATH | O_DIRECTORY, 0);
  if (look(folder, &here)) return 0;
  while (fd >= 0) {
    if (look(fd, &above)) break;
    if (above.uid != 0 && above.uid != self->user) break;
    if ((above.mode & 022) && !(above.mode & S_ISVTX)) break;
    if (above.dev == here.dev && above.ino == here.ino) { close_it(fd); return 1; }
    here = above;
    int next = open_at(fd, "..", O_PATH | O_DIRECTORY, 0);
    close_it(fd);
    fd = next;
  }
  if (fd >= 0) close_it(fd);
  return 0;
}

static void make_folders(const struct self *self, const char *path) {
  char part[PATH];
  long mask = call(SYS_umask, 022, 0, 0, 0, 0, 0);
  for (u64 i = 1; path[i]; i++)
    if (path[i] == '/') {
      for (u64 k = 0; k < i; k++) part[k] = path[k];
      part[i] = 0;
      call(SYS_mkdirat, AT_FDCWD, (long)part, self->user ? 0700 : 0755, 0, 0, 0);
    }
  call(SYS_mkdirat, AT_FDCWD, (long)path, 0700, 0, 0, 0);
  call(SYS_umask, mask, 0, 0, 0, 0, 0);
}

/* Starts Python in the folder `here`; returns only when that fails. */
static void start(const struct self *self, const char *here) {
  char program[PATH] = "", python[PATH] = "", home[PATH] = "PYTHONHOME=", path[PATH] = "PYTHONPATH=";
  add(program, here); add(program, "/installer");
  add(python, here); add(python, "/python");
  add(home, here);
  add(path, here); add(path, "/boot.zip");
  const char *const before[] = {
      self->argc ? self->argv[0] : "installer", "--library-path", here, python, "-s", "-S", "-P",
      "-B", "-X", "utf8", "-c", "import boot; boot.start()", self->path, here};
  u64 n = sizeof before / sizeof *before, e = 0;
  const char **argv = map((n + self->argc + self->envc + 8) * sizeof *argv, -1, MAP_ANONYMOUS);
  if (!argv) return;
  for (u64 i = 0; i < n; i++) argv[i] = before[i];
  for (u64 i = 1; i < self->argc; i++) argv[n++] = self->argv[i];
  const char **envp = argv + n + 1;
  /* These would change which code runs. */
  for (u64 i = 0; i < self->envc; i++)
    if (!starts(self->envp[i], "PYTHON") && !starts(self->envp[i], "LD_") &&
        !starts(self->envp[i], "GLIBC_TUNABLES=") && !starts(self->envp[i], "GCONV_PATH="))
      envp[e++] = self->envp[i];
  envp[e++] = home;
  envp[e++] = path;
  call(SYS_execve, (long)program, (long)argv, (long)envp, 0, 0, 0);
}

/* Unpacks below `base` and goes on there; returns why it can't. */
static const char *go(const struct self *self, const char *base) {
  u64 disk[16]; /* struct statfs: the eleventh number are the flags */
  char here[PATH];
  if (base[0] != '/') return "not an absolute path";
  make_folders(self, base);
  int above = open_private(self, AT_FDCWD, base);
  if (above < 0) return "not there, or not this user's alone (mode 0700)";
  if (!is_safe_above(self, above)) { close_it(above); return "others can write to a folder above"; }
  if (!call(SYS_fstatfs, above, (long)disk, 0, 0, 0, 0) && disk[10] & ST_NOEXEC) {
    close_it(above);
    return "on a file system that starts no programs (noexec)";
  }
  call(SYS_mkdirat, above, (long)self->table->key, 0700, 0, 0, 0);
  int folder = open_private(self, above, self->table->key);
  close_it(above);
  if (folder < 0) return "can't be written to, or the folder in it is not this user's alone";
  for (u64 i = 0; i < self->table->count; i++)
    if (!is_good(self, folder, &self->table->entries[i]) &&
        write_file(self, folder, &self->table->entries[i])) {
      close_it(folder);
      return "can't be written to, or has no room";
    }
  long size = -1;
  if (!call(SYS_fchdir, folder, 0, 0, 0, 0, 0)) {
    size = call(SYS_getcwd, (long)here, PATH, 0, 0, 0, 0);
    call(SYS_fchdir, self->origin, 0, 0, 0, 0, 0);
  }
  close_it(folder);
  if (size < 0 || here[0] != '/') return "has no path";
  for (u64 i = 0; here[i]; i++) if (here[i] == ':') return "has a colon in its path";
  start(self, here);
  return "nothing can be started there";
}

static const char *variable(const struct self *self, const char *name) {
  for (u64 i = 0; i < self->envc; i++)
    if (starts(self->envp[i], name) && self->envp[i][length(name)] == '=') {
      const char *value = self->envp[i] + length(name) + 1;
      return *value ? value : 0;
    }
  return 0;
}

static void attempt(const struct self *self, const char *base, const char *rest, int number,
                    char *report) {
  char path[PATH] = "";
  if (!base) return;
  add(path, base);
  add(path, rest);
  if (number) add_number(path, self->user);
  const char *why = go(self, path);
  add(report, "  "); add(report, path); add(report, ": "); add(report, why); add(report, "\n");
}

/* Opens this very file and maps it; with /proc also when it was started by a relative path. */
static void open_self(struct self *self, const char *started) {
  struct stat status, again;
  long size = call(SYS_readlinkat, AT_FDCWD, (long)"/proc/self/exe", (long)self->path, PATH - 1, 0, 0);
  int fd = size > 0 ? open_at(AT_FDCWD, "/proc/self/exe", 0, 0) : -1;
  if (fd < 0) {
    self->path[0] = 0;
    if (started && started[0] != '/') {
      if (call(SYS_getcwd, (long)self->path, PATH, 0, 0, 0, 0) < 0) self->path[0] = 0;
      add(self->path, "/");
    }
    if (started) add(self->path, started);
    fd = open_at(AT_FDCWD, self->path, 0, 0);
  } else
    self->path[size] = 0;
  int named = open_at(AT_FDCWD, self->path, 0, 0);
  if (fd < 0 || named < 0 || look(fd, &status) || look(named, &again) ||
      status.dev != again.dev || status.ino != again.ino)
    end("the installer doesn't find its own file", "start it by its absolute path", 6);
  close_it(named);
  self->bytes = map((u64)status.size, fd, 0);
  close_it(fd);
  u64 whole = (u64)status.size, at = *(const volatile u64 *)&place.table;
  if (!self->bytes || !at || at > whole || whole - at < sizeof(struct table))
    end("this installer has no content", DAMAGED, 4);
  self->table = (const struct table *)(self->bytes + at);
  u64 count = self->table->count;
  if (!equal((const u8 *)self->table->magic, (const u8 *)"AIRGAP-CONTENT-1", 16) || count > 1000 ||
      whole - at - sizeof(struct table) < count * sizeof(struct entry))
    end("this installer has no content", DAMAGED, 4);
  if (self->table->whole != whole)
    end("this installer has another size than it was made with", DAMAGED, 4);
  for (u64 i = 0; i < count; i++) {
    const struct entry *entry = &self->table->entries[i];
    if (entry->offset > whole || entry->packed > whole - entry->offset || !entry->size)
      end("this installer is damaged", DAMAGED, 4);
  }
}

__attribute__((used)) void begin(u64 *stack) {
  struct self self;
  char report[PATH] = "";
  const char *started = 0, *chosen;
  self.argc = stack[0];
  self.argv = (char *const *)(stack + 1);
  self.envp = self.argv + self.argc + 1;
  for (self.envc = 0; self.envp[self.envc];) self.envc++;
  for (u64 *pair = (u64 *)(self.envp + self.envc + 1); pair[0]; pair += 2) {
    if (pair[0] == AT_EXECFN) started = (const char *)pair[1];
    if (pair[0] == AT_SECURE && pair[1])
      end("the installer has the set-user-id bit", "take it away and use sudo", 2);
  }
  self.user = (u32)call(SYS_geteuid, 0, 0, 0, 0, 0, 0);
  self.origin = open_at(AT_FDCWD, ".", O_PATH | O_DIRECTORY, 0);
  open_self(&self, started);
  if ((chosen = variable(&self, "AIRGAP_UNPACK_DIR"))) attempt(&self, chosen, "", 0, report);
  else {
    if (!self.user) {
      attempt(&self, "/var/cache", "/harbor-airgap", 0, report);
      attempt(&self, "/run", "/harbor-airgap", 0, report);
    } else {
      attempt(&self, variable(&self, "XDG_CACHE_HOME"), "/harbor-airgap", 0, report);
      attempt(&self, variable(&self, "HOME"), "/.cache/harbor-airgap", 0, report);
      attempt(&self, variable(&self, "XDG_RUNTIME_DIR"), "/harbor-airgap", 0, report);
    }
    attempt(&self, variable(&self, "TMPDIR"), "/harbor-airgap-", 1, report);
    attempt(&self, "/tmp", "/harbor-airgap-", 1, report);
    attempt(&self, "/var/tmp", "/harbor-airgap-", 1, report);
    attempt(&self, "/dev/shm", "/harbor-airgap-", 1, report);
  }
  say("error: the installer finds no folder to unpack its 30 MB into:\n");
  say(report);
  say("hint: name one with AIRGAP_UNPACK_DIR, on a disk that programs may be started from\n");
  for (;;) call(SYS_exit, 6, 0, 0, 0, 0, 0);
}
