/* How a tensor is cut into items that threads take, and items into rows.

   A group's memory is (N, C, L) or, channels last, (N, L, C). Two ways to walk over it:
   - runs: each row is of one channel, in one example (channels first, long enough L); a tile is a few channels that lie
     one after the other, so that memory is read in order
   - columns: each row is of several channels, a column always of the same one: a row is a whole number of periods (C
     values channels last, C * L channels first), or, for a long period, a tile's part of one

   An item is a tile's share (part) of the rows. Where a tile has one part, it is measured and normalized while it is in
   cache. Nothing here depends on the number of threads, so results do not either; signs are
   read by the same cut as they were written. */
#include "core.h"

enum {
    RUN_LENGTH = 16,       /* positions from which on a row of one channel is long enough: a vector of any machine */
    RUN_WIDTH = 2048,      /* values of one channel that are summed in float32 before float64 takes over (up to twice) */
    PASS_WIDTH = 1 << 15,  /* the same where nothing is summed: so many values are worth an item */
    PIECE = 1 << 14,       /* bytes of an example in a tile of runs, at least: memory is read faster in long pieces */
    SLAB = 1 << 18,        /* bytes of a tile of runs, at most, if that leaves PIECE: a second reading is from cache */
    TILES = 8,             /* tiles of runs are a multiple of it, where there are as many channels */
    WIDTH = 512,           /* columns of a row at least, of a tensor that is large enough: fewer rows are less work */
    NARROW = 64,           /* columns of a row at least, of any tensor that has them: some vectors */
    LANES = 16,            /* values of the widest vector: a row that ends with one is summed faster */
    FEW_ROWS = 32,         /* rows that a small tensor has nevertheless */
    WIDEST = 2048,         /* columns of a row at most: with their sums they fill the first cache */
    SMALL = 1 << 17,       /* values that caches hold: narrow tiles, which are of one part, are as fast then */
    PART = 1 << 16,        /* values that are worth an item of their own */
    ROWS_OF_PART = 128,    /* rows of columns of a part, at least: sampling and merging are to be little */
    ITEMS = 32,            /* items wanted of a tensor that is large enough */
    COLUMN_TILE = 16       /* tiles of columns begin at multiples of so many channels */
};

struct plan steadynorm_plan(int64_t groups, int64_t examples, int64_t channels, int64_t length, int channels_last,
                            int measures, int masked, int64_t itemsize) {
    struct plan p = {0};
    int64_t period, size = examples * channels * length, values;
    p.inner = channels_last || length == 1 ? 1 : length;
    p.runs = p.inner >= RUN_LENGTH;
    p.pieces = 1;
    p.channels = channels;
    period = channels * p.inner;
    if (p.runs) {
        int64_t together = most(ceil_div(PIECE / itemsize, length), SLAB / itemsize / (examples * length)), tiles;
        int64_t widest = measures ? RUN_WIDTH : PASS_WIDTH;
        p.stride = length;
        p.width = least(length, ceil_div(ceil_div(length, ceil_div(length, widest)), 16) * 16);
        p.pieces = length / p.width; /* the last piece takes what is left, so that none is shorter than a vector */
        p.longest = length - (p.pieces - 1) * p.width;
        p.rows = examples * p.pieces;
        if (measures)
            tiles = ceil_div(ceil_div(channels, together), TILES) * TILES; /* as much work for each of a few threads */
        else
            tiles = ceil_div(ITEMS, groups * p.rows); /* few: memory is read once, and in order */
        p.channels = most(1, ceil_div(channels, tiles));
    } else if (period <= (size <= SMALL ? WIDEST / 8 : WIDEST)) {
        int64_t unit = LANES / least(LANES, period & -period), periods; /* so many periods are whole vectors */
        periods = most(1, least(most(NARROW, least(WIDTH, size / FEW_ROWS)), size) / period);
        if (period * unit <= least(WIDTH, size)) periods = ceil_div(periods, unit) * unit;
        if (masked && unit == 1 && period >= WIDTH / 2) periods = 1; /* then a row is real or not as a whole */
        p.stride = p.width = period * periods;
        p.rows = ceil_div(size, p.width);
    } else {
        int64_t tiles = ceil_div(period, size <= SMALL ? WIDEST / 8 : WIDEST);
        p.channels = least(channels, ceil_div(ceil_div(channels, tiles), COLUMN_TILE) * COLUMN_TILE);
        p.stride = period;
        p.width = p.channels * p.inner;
        p.rows = examples * length / p.inner;
    }
    p.longest = most(p.longest, p.width);
    p.tiles = ceil_div(channels, p.channels);
    values = p.rows * p.width * (p.runs ? p.channels : 1);
    p.parts = groups * p.tiles >= (p.runs && measures ? TILES : ITEMS) ? 1 : ceil_div(2 * ITEMS, groups * p.tiles);
    p.parts = most(1, least(least(p.parts, values / PART), p.runs ? p.rows : p.rows / ROWS_OF_PART));
    if (p.parts > 2) p.parts -= p.parts % 2; /* a team of threads is mostly even */
    p.items = groups * p.tiles * p.parts;
    return p;
}
