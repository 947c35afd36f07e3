// y[t, o(r)] (+)= sum_k W[r, k] x[t, k] + bias[o(r)], o(r) = first + r * stride
//
// Grid   (teams of ROWS rows, 2-D beyond the limit of one dimension, COLS tokens each in z).
// Links  step, rows_*, lane_*, weight_*, blocks_*, bytes_*, lookup_*, four_rows, order_rows, x_*, norm_*, out_*, bias_*, matrix_*
//
// A team holds ROWS x COLS sums (ROWS is a multiple of four), so that each activation serves
// ROWS rows and each weight, decoded once, serves COLS tokens. With one column the blocks of
// four rows are under way at a time: enough to hide memory behind, and few enough registers for
// many teams. Rows come in shards (a limit of bindings, or joined tensors of different
// formats), hence first and stride.
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

@group(0) @binding(0) var<storage, read> w: array<vec4<u32>>;       // [rows, k] packed
@group(0) @binding(3) var<storage, read_write> y: array<f32>;       // [T, n]
@group(0) @binding(7) var<uniform> p: Params;

// Adds what quads first .. end - 1 of a group contribute, for every column; `at` is where the
// group of the first column lies.
fn columns(
    sums: ptr<function, array<f32, ROWS * COLS>>,
    blocks: ptr<function, array<Block, ROWS>>,
    at: u32,
    first: u32,
    end: u32,
) {
    for (var i = first; i < end; i++) {
        var q: array<vec4<f32>, ROWS>;
        for (var r = 0u; r < ROWS; r++) {
            q[r] = quad((*blocks)[r], i);
            if (HAS_SCALE) {
                let dm = scale_min((*blocks)[r], i);
                q[r] = q[r] * dm.x + dm.y;
            }
        }
        for (var c = 0u; c < COLS; c++) {
            let v = x4(at + c * p.groups * 8u + i);
            for (var r = 0u; r < ROWS; r++) {
                (*sums)[r * COLS + c] += dot(q[r], v);
            }
        }
    }
}

fn kernel(group: vec3<u32>, team: Team, lane: Lane) {
    let layer = layer_of(group.z, COLS);
    if (layer.start >= layer.end) {
        return;
    }
    let x0 = input_row(layer.start);
    for (var r0 = team.index * ROWS; r0 < p.rows; r0 += team.count * ROWS) {
        var sums: array<f32, ROWS * COLS>;
        var squares = 0.0;
        for (var g = lane.index; g < p.groups; g += lane.count) {
            if (COLS == 1u) {
                var v: array<vec4<f32>, 8>;
                for (var i = 0u; i < 8u; i++) {
                    v[i] = x4((x0 * p.groups + g) * 8u + i);
                    if (HAS_NORM) {
                        squares += dot(v[i], v[i]);
                        v[i] *= gain4(g * 8u + i);
                    }
                }
                for (var first = 0u; first < ROWS; first += 4u) {
                    var blocks: array<Block, 4>;
                    for (var r = 0u; r < 4u; r++) {
                        blocks[r] = block(block_at(layer.weights + r0 + first + r, g), g);
                    }
                    var four = vec4<f32>(sums[first], sums[first + 1u], sums[first + 2u], sums[first + 3u]);
                    four = four_rows(&blocks, &v, totals(&v), four);
                    for (var r = 0u; r < 4u; r++) {
                        sums[first + r] = four[r];
                    }
                }
            } else {
                var blocks: array<Block, ROWS>;
                for (var r = 0u; r < ROWS; r++) {
                    blocks[r] = block(block_at(layer.weights + r0 + r, g), g);
                }
                let at = (x0 * p.groups + g) * 8u;
                if (COLS < 8u) {
                    columns(&sums, &blocks, at, 0u, 2u);
                    columns(&sums, &blocks, at, 2u, 4u);
                    columns(&sums, &blocks, at, 4u, 6u);
                    columns(&sums, &blocks, at, 6u, 8u);
                } else {
                    columns(&sums, &blocks, at, 0u, 8u);
                }
            }
        }
        var factor = 1.0;
        if (HAS_NORM) {
            factor = 1.0 / sqrt(sum_all(lane, squares) / p.width + p.eps);
        }
        for (var c = 0u; c < COLS; c++) {
            for (var r = 0u; r < ROWS; r += 4u) {
                let sum = sum_all4(lane, vec4<f32>(
                    sums[r * COLS + c],
                    sums[(r + 1u) * COLS + c],
                    sums[(r + 2u) * COLS + c],
                    sums[(r + 3u) * COLS + c],
                ));
                if (lane.index == 0u && layer.start + c < layer.end) {
                    put4(result_row(layer.start + c) * p.pitch, r0 + r, sum * factor);
                }
            }
        }
    }
}
