// y[t, o(r)] (+)= sum_k W[r, k] x[t, k] + bias[o(r)], o(r) = first + r * stride
//
// Grid   (tiles of 64 rows, as often as the columns are split; 2-D beyond the limit of one
//        dimension; tiles of 64 tokens in z).
// Links  step, rows_*, lane_tile_subgroup, coop_*, weight_*, order_rows, x_storage, out_*, bias_*
//
// The matrix units multiply halves and add in f32. A group of columns at a time is rounded to
// halves and brought to workgroup memory, where a lane finds the columns of its token or row
// side by side: straight from the activations it would load them two bytes at a time. Each of
// four subgroups then multiplies a quarter of the tile, 32 tokens by 32 rows; where the
// workgroup has fewer, they take turns, and where it has more, the others only fetch. Sums come
// back through workgroup memory, since which lane holds which is the driver's secret.
struct Params {
    groups: u32,  // of 32 weights in a row
    rows: u32,    // in this shard, with the zero rows that fill the padding of y
    pitch: u32,   // of a row of y, in values
    first: u32,   // output of row 0
    stride: u32,  // outputs from one row to the next
    splits: u32,  // workgroups that share the columns
    part: u32,    // values of y from what one of them writes to the next
}

@group(0) @binding(0) var<storage, read> w: array<vec4<u32>>;   // [rows, k] packed
@group(0) @binding(1) var<storage, read> scales: array<u32>;    // [rows, k / 32] packed
@group(0) @binding(3) var<storage, read_write> y: array<f32>;   // [T, n], or [T, splits, n]
@group(0) @binding(5) var<uniform> p: Params;

const TILE = 64u;
const QUARTERS = 4u;
// Of a line in workgroup memory: 32 columns, and eight unused, so that eight lines fill all banks.
const PITCH = 40u;
// Activations are divided by this on their way to halves, and sums multiplied: it moves what a
// half can hold from 65504 to a million. A power of two rounds nothing.
const RANGE = 16.0;
const MOST = 65504.0 * RANGE;

var<workgroup> tokens: array<f16, TILE * PITCH>;
var<workgroup> weights: array<f16, TILE * PITCH>;
var<workgroup> results: array<f32, QUARTERS * SIDE * SIDE>;

fn bring_row(b: Block, row: u32) {
    for (var i = 0u; i < 8u; i++) {
        var v = quad(b, i);
        if (HAS_SCALE) {
            let dm = scale_min(b, i);
            v = v * dm.x + dm.y;
        }
        let halves = vec4<f16>(v);
        for (var c = 0u; c < 4u; c++) {
            weights[row * PITCH + i * 4u + c] = halves[c];
        }
    }
}

fn bring_quad(v: vec4<f32>, token: u32, i: u32) {
    let halves = vec4<f16>(clamp(v, vec4<f32>(-MOST), vec4<f32>(MOST)) * (1.0 / RANGE));
    for (var c = 0u; c < 4u; c++) {
        tokens[token * PITCH + i * 4u + c] = halves[c];
    }
}

fn kernel(group: vec3<u32>, team: Team, lane: Lane) {
    let tiles = (p.rows + TILE - 1u) / TILE;
    let split = team.index / tiles;
    if (split >= p.splits) {
        return;
    }
    let share = (p.groups + p.splits - 1u) / p.splits;
    let end = min((split + 1u) * share, p.groups);
    let row0 = team.index % tiles * TILE;
    let token0 = group.z * TILE;
    let last_token = n_rows() - 1u;

    for (var turn = 0u; turn * lane.subgroups < QUARTERS; turn++) {
        let quarter = turn * lane.subgroups + lane.subgroup;
        let busy = quarter < QUARTERS;
        var sums: Sums;
        for (var g = split * share; g < end; g++) {
            // First the rows of the tile, then its tokens, in eight strides.
            for (var i = lane.index; i < 2u * TILE; i += WG) {
                if (i < TILE) {
                    bring_row(block(block_at(min(row0 + i, p.rows - 1u), g)), i);
                } else {
                    for (var j = 0u; j < 8u; j++) {
                        let token = (i - TILE) / 8u + j * 8u;
                        // Tokens beyond the batch repeat its last; nothing of them is written.
                        let t = min(token0 + token, last_token);
                        bring_quad(x4((t * p.groups + g) * 8u + i % 8u), token, i % 8u);
                    }
                }
            }
            workgroupBarrier();
            if (busy) {
                multiply(&sums, quarter / 2u * 32u * PITCH, quarter % 2u * 32u * PITCH);
            }
            workgroupBarrier();
        }
        // A matrix of each quarter at a time; four neighbouring sums an invocation.
        for (var f = 0u; f < SIDES * SIDES; f++) {
            if (busy) {
                leave(&sums, f, quarter * SIDE * SIDE);
            }
            workgroupBarrier();
            for (var four = lane.index; four < QUARTERS * SIDE * SIDE / 4u; four += WG) {
                let i = four * 4u;
                let fourth = i / (SIDE * SIDE);
                let t = token0 + fourth / 2u * 32u + f / SIDES * SIDE + i / SIDE % SIDE;
                if (fourth / lane.subgroups == turn && t <= last_token) {
                    let row = row0 + fourth % 2u * 32u + f % SIDES * SIDE + i % SIDE;
                    let sum = vec4<f32>(results[i], results[i + 1u], results[i + 2u], results[i + 3u]);
                    put4(t * p.pitch + split * p.part, row, sum * RANGE);
                }
            }
            workgroupBarrier();
        }
    }
}
