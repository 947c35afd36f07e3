// y[t, o(r)] (+)= sum_k W[r, k] x[t, k] + bias[o(r)], o(r) = first + r * stride
//
// Grid   (subgroups of ROWS rows a lane, 2-D beyond the limit of one dimension, COLS tokens each in z).
// Links  step, rows_*, lane_subgroup, weight_*, blocks_*, bytes_*, lookup_*, lanes_*, order_bundles, x_*, norm_*, out_*, bias_*, matrix_*
//
// For adapters whose subgroups are the vector registers of a CPU. There a load costs for each
// lane, also where all lanes load the same: so the lanes share the loads of x, each takes a
// vector of four, and a shuffle, which is one instruction, hands it to all. A lane owns ROWS
// rows, which lie in bundles, so that a subgroup's weights are one stream for the CPU to fetch
// ahead; and no sum crosses lanes. Loops that choose among parts of a register are written out:
// the compilers of such adapters turn a choice that depends on a counter into blends. A load is
// hundreds of instructions there, so that rows of some formats take turns, TURN at a time: a body
// for all would be more than a CPU's cache for instructions holds.
struct Params {
    groups: u32,  // of 32 weights in a row
    rows: u32,    // in this shard, with the zero rows that fill the padding of y
    pitch: u32,   // of a row of y, in values
    first: u32,   // output of row 0
    stride: u32,  // outputs from one row to the next
    width: f32,   // of x, without padding: for the mean in the norm
    eps: f32,     // of the norm
    matrix: u32,    // the first matrix in this shard
    matrices: u32,  // how many it has
    each: u32,      // rows from one to the next
}

const_assert COLS == 1u || !HAS_NORM;
const_assert ROWS == 4u;  // as bundles are ordered
const_assert ROWS % TURN == 0u && (TURN == ROWS || COLS == 1u);

@group(0) @binding(0) var<storage, read> w: array<vec4<u32>>;       // [rows, k] packed
@group(0) @binding(3) var<storage, read_write> y: array<f32>;       // [T, n]
@group(0) @binding(7) var<uniform> p: Params;

// Eight vectors of four, which the first LANES lanes of a subgroup hold together: one a lane, or two where subgroups may
// have no more than four.
struct Eight {
    low: vec4<f32>,
    high: vec4<f32>,
}

// Vector i of the eight; every lane asks for the same one.
fn shared_quad(all: Eight, i: u32) -> vec4<f32> {
    if (LANES >= 8u) {
        return subgroupShuffle(all.low, i);
    }
    if (i < 4u) {
        return subgroupShuffle(all.low, i);
    }
    return subgroupShuffle(all.high, i - 4u);
}

const TURNS = ROWS / TURN;

struct Sums {
    rows: array<f32, TURN>,
    total: vec4<f32>,
}

fn add_quad(sums: ptr<function, Sums>, blocks: ptr<function, array<Block, TURN>>, v: vec4<f32>, i: u32) {
    if (HAS_MIN) {
        (*sums).total += v;
    }
    for (var r = 0u; r < TURN; r++) {
        (*sums).rows[r] += dot(quad((*blocks)[r], i), v);
    }
}

// Adds sums of quads that have the scale of quad i.
fn add_sums(
    out: ptr<function, array<f32, ROWS * COLS>>,
    blocks: ptr<function, array<Block, TURN>>,
    sums: Sums,
    i: u32,
) {
    let total = dot(sums.total, vec4<f32>(1.0));
    for (var r = 0u; r < TURN; r++) {
        if (HAS_SCALE) {
            let dm = scale_min((*blocks)[r], i);
            (*out)[r] += dm.x * sums.rows[r] + dm.y * total;
        } else {
            (*out)[r] += sums.rows[r];
        }
    }
}

// Adds the products of a turn's rows with a group of x.
fn add_turn(
    out: ptr<function, array<f32, ROWS * COLS>>,
    blocks: ptr<function, array<Block, TURN>>,
    v: ptr<function, array<vec4<f32>, 8>>,
) {
    var sums: Sums;
    add_quad(&sums, blocks, (*v)[0], 0u);
    add_quad(&sums, blocks, (*v)[1], 1u);
    add_quad(&sums, blocks, (*v)[2], 2u);
    add_quad(&sums, blocks, (*v)[3], 3u);
    if (HALVES) {
        add_sums(out, blocks, sums, 0u);
        sums = Sums();
    }
    add_quad(&sums, blocks, (*v)[4], 4u);
    add_quad(&sums, blocks, (*v)[5], 5u);
    add_quad(&sums, blocks, (*v)[6], 6u);
    add_quad(&sums, blocks, (*v)[7], 7u);
    add_sums(out, blocks, sums, 4u);
}

fn kernel(group: vec3<u32>, team: Team, lane: Lane) {
    start_lookup(lane.index);
    let layer = layer_of(group.z, COLS);
    // A workgroup may be less than a subgroup.
    let lanes = min(team.lanes, WG);
    // The same for all lanes of the subgroup, so that they shuffle together.
    if (team.index * lanes * ROWS >= p.rows || layer.start >= layer.end) {
        return;
    }
    let r0 = (team.index * lanes + lane.index) * ROWS;
    // Lanes beyond the last row repeat the last four.
    let row = layer.weights + min(r0, (p.rows - 1u) / ROWS * ROWS);
    var out: array<f32, ROWS * COLS>;
    var squares = 0.0;
    let mine = lane.index % LANES;
    // The rows of x that a lane loads for all: columns beyond the last repeat it.
    let low = input_row(min(layer.start + mine % COLS, layer.end - 1u)) * p.groups;
    let high = input_row(min(layer.start + (mine + 4u) % COLS, layer.end - 1u)) * p.groups;
    var blocks: array<Block, TURN>;
    var fours: Fours;
    var all: Eight;
    var v: array<vec4<f32>, 8>;
    // One loop for groups and turns: Mesa 22 is several times slower with one inside of another.
    for (var n = 0u; n < p.groups * TURNS; n++) {
        let g = n / TURNS;
        let turn = n % TURNS;
        next_blocks(&blocks, &fours, block_at(row, g) + turn * TURN * NEXT_ROW, g);
        if (COLS == 1u) {
            if (turn == 0u) {
                let at = g * 8u + mine;
                all.low = x4(low * 8u + at);
                if (LANES < 8u) {
                    all.high = x4(low * 8u + at + 4u);
                }
                if (HAS_NORM) {
                    squares += dot(all.low, all.low) + dot(all.high, all.high);
                    all.low *= gain4(at);
                    if (LANES < 8u) {
                        all.high *= gain4(at + 4u);
                    }
                }
                v[0] = shared_quad(all, 0u);
                v[1] = shared_quad(all, 1u);
                v[2] = shared_quad(all, 2u);
                v[3] = shared_quad(all, 3u);
                v[4] = shared_quad(all, 4u);
                v[5] = shared_quad(all, 5u);
                v[6] = shared_quad(all, 6u);
                v[7] = shared_quad(all, 7u);
            }
            add_turn(&out, &blocks, &v);
            if (TURN < ROWS) {
                // A turn's rows come first, and the first again after the last turn.
                let before = out;
                out[0] = before[TURN % ROWS];
                out[1] = before[(1u + TURN) % ROWS];
                out[2] = before[(2u + TURN) % ROWS];
                out[3] = before[(3u + TURN) % ROWS];
            }
        } else {
            for (var i = 0u; i < 8u; i++) {
                var q: array<vec4<f32>, ROWS>;
                for (var r = 0u; r < ROWS; r++) {
                    q[r] = quad(blocks[r], i);
                    if (HAS_SCALE) {
                        let dm = scale_min(blocks[r], i);
                        q[r] = q[r] * dm.x + dm.y;
                    }
                }
                all.low = x4((low + g) * 8u + i);
                if (COLS > 4u && LANES < 8u) {
                    all.high = x4((high + g) * 8u + i);
                }
                for (var c = 0u; c < COLS; c++) {
                    let v = shared_quad(all, c);
                    for (var r = 0u; r < ROWS; r++) {
                        out[r * COLS + c] += dot(q[r], v);
                    }
                }
            }
        }
    }
    var factor = 1.0;
    if (HAS_NORM) {
        // The lanes after the first LANES saw the same values again.
        let sum = sum_all(lane, select(0.0, squares, lane.index < LANES));
        factor = 1.0 / sqrt(sum / p.width + p.eps);
    }
    for (var c = 0u; c < COLS; c++) {
        if (layer.start + c < layer.end) {
            for (var r = 0u; r < ROWS; r += 4u) {
                let sum = vec4<f32>(
                    out[r * COLS + c],
                    out[(r + 1u) * COLS + c],
                    out[(r + 2u) * COLS + c],
                    out[(r + 3u) * COLS + c],
                );
                put4(result_row(layer.start + c) * p.pitch, r0 + r, sum * factor);
            }
        }
    }
}
