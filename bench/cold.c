// What memory costs that was not touched for a while, in small pages and in huge ones.
//
//   cc -O1 -o bench/out/cold bench/cold.c && bench/out/cold
//
// A line of each of 500 pages is read after a pause in which this program spins, so that it is not the processor that slept. On a machine of one's
// own it is the same after any pause. On a virtual machine whose host takes memory back, or looks which of it is used, reading costs more the longer
// the pause was, a step for each piece of the host's that was not touched meanwhile; huge pages are fewer pieces.
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#define PAGE 4096
#define HUGE (2UL << 20)
#define PAGES 500
#define ROUNDS 15

static double now_us(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e6 + (double)t.tv_nsec / 1e3;
}

static void spin(double us) {
    for (double end = now_us() + us; now_us() < end; ) {}
}

static int by_size(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median_us(const char *memory, double pause_us) {
    double times[ROUNDS];
    volatile char sum = 0;
    for (int r = 0; r < ROUNDS; r++) {
        spin(pause_us);
        double began = now_us();
        for (size_t i = 0; i < PAGES; i++) sum += memory[i * PAGE + i * 64 % PAGE];
        times[r] = now_us() - began;
    }
    qsort(times, ROUNDS, sizeof *times, by_size);
    return times[ROUNDS / 2];
}

int main(void) {
    static const double pauses_ms[] = {0.1, 5, 50, 300, 1000};
    size_t size = PAGES * PAGE + 2 * HUGE;
    char *memory[2];
    for (int huge = 0; huge < 2; huge++) {
        char *whole = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (whole == MAP_FAILED) { perror("cold"); return 2; }
        memory[huge] = (char *)(((size_t)whole + HUGE - 1) & ~(HUGE - 1));
        madvise(memory[huge], HUGE, huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
        memset(memory[huge], 1, PAGES * PAGE);
    }
    for (size_t i = 0; i < sizeof pauses_ms / sizeof *pauses_ms; i++) {
        double small = median_us(memory[0], pauses_ms[i] * 1e3), large = median_us(memory[1], pauses_ms[i] * 1e3);
        printf("after %6.1f ms: %7.1f us in small pages, %6.1f in huge ones (medians of %d)\n", pauses_ms[i], small, large, ROUNDS);
    }
    return 0;
}
