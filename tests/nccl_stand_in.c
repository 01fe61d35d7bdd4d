// NCCL and CUDA's driver where there is no GPU: the same calls over sockets and host memory, for tests of who calls what
// with which arguments. One process is rank 0 of a communicator, the others connect to it. Each operation first says
// what it is; ranks that disagree about that get an error, and a peer that is gone is one, too.
#include <errno.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

typedef struct { char internal[128]; } ncclUniqueId;
typedef struct { int rank, world, sockets[64]; } Comm;
typedef struct { uint64_t operation, count, dtype; } Said;
enum { OK = 0, SYSTEM = 2, WRONG_ARGUMENT = 4 };
static const int SIZES[] = {1, 1, 4, 4, 8, 8, 2, 4, 8, 2};
static __thread char said[200];

static int fail(int code, const char *what) { snprintf(said, sizeof said, "stand-in: %s", what); return code; }

static struct sockaddr_un address(const ncclUniqueId *id) {
    struct sockaddr_un at = {.sun_family = AF_UNIX};
    memcpy(at.sun_path + 1, id->internal, 32);  // an abstract name: no file
    return at;
}

static int move(int fd, void *data, size_t n, int out) {
    for (char *at = data; n;) {
        ssize_t did = out ? send(fd, at, n, MSG_NOSIGNAL) : recv(fd, at, n, 0);
        if (did <= 0) return fail(SYSTEM, "the peer is gone");
        at += did, n -= did;
    }
    return OK;
}

const char *ncclGetErrorString(int code) { return code == SYSTEM ? "system error" : "invalid argument"; }
const char *ncclGetLastError(void *comm) { return said; }
int ncclGetVersion(int *version) { *version = 23203; return OK; }

int ncclGetUniqueId(ncclUniqueId *id) {
    memset(id, 0, sizeof *id);
    unsigned char raw[16];
    if (getrandom(raw, sizeof raw, 0) != sizeof raw) return fail(SYSTEM, "getrandom");
    for (int i = 0; i < 16; i++) sprintf(id->internal + 2 * i, "%02x", raw[i]);
    id->internal[127] = 'x';  // the whole structure must come through
    return OK;
}

int ncclCommInitRank(void **out, int world, ncclUniqueId id, int rank) {
    if (id.internal[127] != 'x' || rank < 0 || rank >= world || world > 64) return fail(WRONG_ARGUMENT, "init");
    Comm *comm = calloc(1, sizeof *comm);
    comm->rank = rank, comm->world = world;
    struct sockaddr_un at = address(&id);
    socklen_t size = offsetof(struct sockaddr_un, sun_path) + 33;
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    if (rank == 0) {
        struct timeval most = {10, 0};
        setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &most, sizeof most);
        if (bind(fd, (void *)&at, size) || listen(fd, 64)) return fail(SYSTEM, strerror(errno));
        for (int i = 1; i < world; i++) {
            int peer = accept(fd, NULL, NULL), of;
            if (peer < 0 || move(peer, &of, sizeof of, 0)) return fail(SYSTEM, "a rank did not come");
            comm->sockets[of] = peer;
        }
        close(fd);
    } else {
        for (int tries = 0; connect(fd, (void *)&at, size); tries++) {
            if (tries > 1000) return fail(SYSTEM, "rank 0 did not come");
            usleep(10000);
        }
        comm->sockets[0] = fd;
        if (move(fd, &rank, sizeof rank, 1)) return SYSTEM;
    }
    *out = comm;
    return OK;
}

static int agree(Comm *comm, Said mine) {
    Said theirs;
    for (int i = 0; i < comm->world; i++) {
        if (!comm->sockets[i]) continue;
        int code = move(comm->sockets[i], &mine, sizeof mine, 1);
        if (code || (code = move(comm->sockets[i], &theirs, sizeof theirs, 0))) return code;
        if (memcmp(&mine, &theirs, sizeof mine)) return fail(WRONG_ARGUMENT, "ranks disagree");
    }
    return OK;
}

int ncclBroadcast(const void *from, void *to, size_t count, int dtype, int root, void *handle, void *stream) {
    Comm *comm = handle;
    if (root != 0 || dtype < 0 || dtype > 9) return fail(WRONG_ARGUMENT, "broadcast");
    int code = agree(comm, (Said){1, count, dtype});
    for (int i = 0; i < comm->world && !code; i++)
        if (comm->sockets[i])
            code = move(comm->sockets[i], comm->rank ? to : (void *)from, count * SIZES[dtype], comm->rank == 0);
    return code;
}

int ncclAllReduce(const void *from, void *to, size_t count, int dtype, int op, void *handle, void *stream) {
    Comm *comm = handle;
    if (count != 1 || dtype != 7 || op != 0) return fail(WRONG_ARGUMENT, "only the sum of one float");
    int code = agree(comm, (Said){2, count, dtype});
    float sum = *(const float *)from, other;
    if (comm->rank) {
        if (!code) code = move(comm->sockets[0], &sum, sizeof sum, 1);
        if (!code) code = move(comm->sockets[0], to, sizeof sum, 0);
        return code;
    }
    for (int i = 1; i < comm->world && !code; i++) code = move(comm->sockets[i], &other, sizeof other, 0), sum += other;
    for (int i = 1; i < comm->world && !code; i++) code = move(comm->sockets[i], &sum, sizeof sum, 1);
    *(float *)to = sum;
    return code;
}

int ncclCommAbort(void *handle) {  // from another thread: whoever waits in it gets an error
    Comm *comm = handle;
    for (int i = 0; i < comm->world; i++)
        if (comm->sockets[i]) shutdown(comm->sockets[i], SHUT_RDWR);
    return OK;
}

int ncclCommDestroy(void *handle) { return ncclCommAbort(handle); }
int ncclGroupStart(void) { return OK; }
int ncclGroupEnd(void) { return OK; }

#define ABSENT(name) int name(void) { return fail(WRONG_ARGUMENT, #name " is not there"); }
ABSENT(ncclReduce) ABSENT(ncclAllGather) ABSENT(ncclReduceScatter) ABSENT(ncclSend) ABSENT(ncclRecv)
ABSENT(ncclCommSuspend) ABSENT(ncclCommResume) ABSENT(ncclCommWindowRegister) ABSENT(ncclCommWindowDeregister)

int cuInit(unsigned flags) { return OK; }
int cuDeviceGet(int *device, int ordinal) { *device = ordinal; return OK; }
int cuDevicePrimaryCtxRetain(void **context, int device) { *context = &said; return OK; }
int cuCtxSetCurrent(void *context) { return OK; }
int cuStreamCreate(void **stream, unsigned flags) { *stream = &said; return OK; }
int cuStreamSynchronize(void *stream) { return OK; }
