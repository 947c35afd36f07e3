// y[t, o(r)] (+)= sum_k W[r, k] x[t, k] + bias[o(r)], o(r) = first + r * stride
//
// Grid   (tiles of ROWS rows, as often as the columns are split; 2-D beyond the limit of one
//        dimension; tiles of COLS tokens in z).
// Links  step, rows_*, lane_tile_subgroup, coop_*, weight_*, blocks_*, bytes_*, lookup_*, order_rows, x_storage, out_*, bias_*, matrix_*
//
// The matrix units multiply halves and add in f32. Two groups of columns at a time are rounded
// to halves and brought to workgroup memory, where a lane finds the columns of its token or row
// side by side: straight from the activations it would load them two bytes at a time. Each
// subgroup then multiplies a square of the tile, 32 tokens by 32 rows; where the workgroup has
// fewer subgroups than squares, they take turns, and where it has more, the others only fetch.
// Sums come back through workgroup memory, since which lane holds which is the driver's secret.
struct Params {
    groups: u32,  // of 32 weights in a row
    rows: u32,    // in this shard, with the zero rows that fill the padding of y
    pitch: u32,   // of a row of y, in values
    first: u32,   // output of row 0
    stride: u32,  // outputs from one row to the next
    splits: u32,  // workgroups that share the columns
    part: u32,    // values of y from what one of them writes to the next
    matrix: u32,    // the first matrix in this shard
    matrices: u32,  // how many it has
    each: u32,      // rows from one to the next
}

@group(0) @binding(0) var<storage, read> w: array<vec4<u32>>;   // [rows, k] packed
@group(0) @binding(3) var<storage, read_write> y: array<f32>;   // [T, n], or [T, splits, n]
@group(0) @binding(6) var<uniform> p: Params;

const STEP = 2u;  // groups of columns that are brought at a time
const ROW_SQUARES = ROWS / 32u;
const SQUARES = ROW_SQUARES * (COLS / 32u);
// Of a line in workgroup memory: the columns, and eight unused, so that eight lines fill all banks.
const PITCH = STEP * 32u + 8u;
const QUADS = COLS * STEP * 8u;
// Of rows and of activations, what an invocation brings.
const OWN_BLOCKS = (ROWS * STEP + WG - 1u) / WG;
const OWN_QUADS = (QUADS + WG - 1u) / WG;
// Activations are divided by this on their way to halves, and sums multiplied: it moves what a
// half can hold from 65504 to a million. A power of two rounds nothing.
const RANGE = 16.0;
const MOST = 65504.0 * RANGE;

var<workgroup> tokens: array<f16, COLS * PITCH>;
var<workgroup> weights: array<f16, ROWS * PITCH>;
var<workgroup> results: array<f32, SQUARES * SIDE * SIDE>;

// Quad i of a block at its place in the block's line, or zeros.
fn bring_weights(b: Block, i: u32, line: u32, live: bool) {
    var v = quad(b, i);
    if (HAS_SCALE) {
        let dm = scale_min(b, i);
        v = v * dm.x + dm.y;
    }
    let halves = select(vec4<f16>(), vec4<f16>(v), live);
    let at = line + i * 4u;
    weights[at] = halves.x;
    weights[at + 1u] = halves.y;
    weights[at + 2u] = halves.z;
    weights[at + 3u] = halves.w;
}

// Written out, not a loop: which word of a block holds a quad is then known.
fn bring_block(b: Block, line: u32, live: bool) {
    bring_weights(b, 0u, line, live);
    bring_weights(b, 1u, line, live);
    bring_weights(b, 2u, line, live);
    bring_weights(b, 3u, line, live);
    bring_weights(b, 4u, line, live);
    bring_weights(b, 5u, line, live);
    bring_weights(b, 6u, line, live);
    bring_weights(b, 7u, line, live);
}

fn bring_quad(v: vec4<f32>, at: u32) {
    let halves = vec4<f16>(clamp(v, vec4<f32>(-MOST), vec4<f32>(MOST)) * (1.0 / RANGE));
    tokens[at] = halves.x;
    tokens[at + 1u] = halves.y;
    tokens[at + 2u] = halves.z;
    tokens[at + 3u] = halves.w;
}

// What an invocation will bring next, on its way while the matrix units work.
struct Held {
    blocks: array<Block, OWN_BLOCKS>,
    quads: array<vec4<f32>, OWN_QUADS>,
}

// Loads what the invocation brings of the groups from g on. Rows and tokens beyond the last
// repeat it, and groups beyond the end the last before it: of the former nothing is written, and
// of the latter the weights become zeros.
fn fetch(held: ptr<function, Held>, lane: Lane, row0: u32, layer: Layer, g: u32, end: u32) {
    for (var j = 0u; j < OWN_BLOCKS; j++) {
        let i = lane.index + j * WG;
        let row = layer.weights + min(row0 + i / STEP, p.rows - 1u);
        let k = min(g + i % STEP, end - 1u);
        (*held).blocks[j] = block(block_at(row, k), k);
    }
    for (var j = 0u; j < OWN_QUADS; j++) {
        let i = lane.index + j * WG;
        let t = input_row(min(layer.start + i / (STEP * 8u), layer.end - 1u));
        (*held).quads[j] = x4((t * p.groups + min(g + i / 8u % STEP, end - 1u)) * 8u + i % 8u);
    }
}

fn kernel(group: vec3<u32>, team: Team, lane: Lane) {
    let tiles = (p.rows + ROWS - 1u) / ROWS;
    let split = team.index / tiles;
    let layer = layer_of(group.z, COLS);
    if (split >= p.splits || layer.start >= layer.end) {
        return;
    }
    let share = (p.groups + p.splits - 1u) / p.splits;
    let end = min((split + 1u) * share, p.groups);
    let row0 = team.index % tiles * ROWS;

    for (var turn = 0u; turn * team.subgroups < SQUARES; turn++) {
        let square = turn * team.subgroups + lane.subgroup;
        let busy = square < SQUARES;
        let token_at = square / ROW_SQUARES * 32u * PITCH;
        let row_at = square % ROW_SQUARES * 32u * PITCH;
        var sums: Sums;
        var held: Held;
        fetch(&held, lane, row0, layer, split * share, end);
        for (var g = split * share; g < end; g += STEP) {
            for (var j = 0u; j < OWN_BLOCKS; j++) {
                let i = lane.index + j * WG;
                if (i < ROWS * STEP) {
                    bring_block(held.blocks[j], i / STEP * PITCH + i % STEP * 32u, g + i % STEP < end);
                }
            }
            for (var j = 0u; j < OWN_QUADS; j++) {
                let i = lane.index + j * WG;
                if (i < QUADS) {
                    bring_quad(held.quads[j], i / (STEP * 8u) * PITCH + i % (STEP * 8u) * 4u);
                }
            }
            workgroupBarrier();
            fetch(&held, lane, row0, layer, g + STEP, end);
            if (busy) {
                multiply(&sums, token_at, row_at);
            }
            workgroupBarrier();
        }
        // A matrix of each square at a time; four neighbouring sums an invocation.
        for (var f = 0u; f < SIDES * SIDES; f++) {
            if (busy) {
                leave(&sums, f, square * SIDE * SIDE);
            }
            workgroupBarrier();
            for (var four = lane.index; four < SQUARES * SIDE * SIDE / 4u; four += WG) {
                let i = four * 4u;
                let source = i / (SIDE * SIDE);
                let t = layer.start + source / ROW_SQUARES * 32u + f / SIDES * SIDE + i / SIDE % SIDE;
                if (source / team.subgroups == turn && t < layer.end) {
                    let row = row0 + source % ROW_SQUARES * 32u + f % SIDES * SIDE + i % SIDE;
                    let sum = vec4<f32>(results[i], results[i + 1u], results[i + 2u], results[i + 3u]);
                    put4(result_row(t) * p.pitch + split * p.part, row, sum * RANGE);
                }
            }
            workgroupBarrier();
        }
    }
}
