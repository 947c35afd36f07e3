// y[t, o(r)] (+)= sum_g e_g W[r, g] rounded(x[t, g] / e_g) + bias[o(r)], e_g = max |x[t, g]| / 127
//
// Grid   as `gemv`: (teams of ROWS rows, 2-D beyond the limit of one dimension, COLS tokens each in z).
// Links  step, rows_*, lane_*, weight_*, blocks_*, bytes_*, order_rows, x_storage, norm_*, out_*, bias_*, matrix_*
//
// As `gemv`, with the activations of a group of 32 columns rounded to bytes, and four weights
// multiplied at a time (`dot4I8Packed`). Each team rounds for itself, which a launch of its own
// would only do once: but that launch would cost more than what 8 ROWS weights share here.
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

// Below this the scale of a group would be no number: it counts as zero.
const LEAST = 1e-30;

// Four values, from -127 to 127 when multiplied by `inverse`, rounded to signed bytes.
fn bytes_of(v: vec4<f32>, inverse: f32) -> u32 {
    // From 2^23 on f32 has no fraction: the sum is rounded, and its last byte is value + 128.
    let b = bitcast<vec4<u32>>(v * inverse + vec4<f32>(8388736.0));
    // No byte carries into the next. What the exponent leaves in the last one, 0x4b, is taken out
    // together with its 128.
    return ((b.x + (b.y << 8u) + (b.z << 16u) + (b.w << 24u)) ^ 0x00808080u) + 0x35000000u;
}

fn kernel(group: vec3<u32>, team: Team, lane: Lane) {
    let layer = layer_of(group.z, COLS);
    let t0 = layer.start;
    for (var r0 = team.index * ROWS; r0 < p.rows; r0 += team.count * ROWS) {
        var sums: array<f32, ROWS * COLS>;
        var squares = 0.0;
        for (var g = lane.index; g < p.groups; g += lane.count) {
            var blocks: array<Block, ROWS>;
            for (var r = 0u; r < ROWS; r++) {
                blocks[r] = block(block_at(r0 + r, g), g);
            }
            for (var c = 0u; c < COLS; c++) {
                var v: array<vec4<f32>, 8>;
                var most = vec4<f32>(0.0);
                for (var i = 0u; i < 8u; i++) {
                    v[i] = x4(((t0 + c) * p.groups + g) * 8u + i);
                    if (HAS_NORM) {
                        squares += dot(v[i], v[i]);
                        v[i] *= gain4(g * 8u + i);
                    }
                    most = max(most, abs(v[i]));
                }
                let largest = max(max(most.x, most.y), max(most.z, most.w));
                let inverse = select(127.0 / largest, 0.0, largest < LEAST);
                let scale = largest / 127.0;
                var bytes: array<u32, 8>;
                var total = 0i;
                for (var i = 0u; i < 8u; i++) {
                    bytes[i] = bytes_of(v[i], inverse);
                    total += dot4I8Packed(bytes[i], 0x01010101u);
                }
                for (var r = 0u; r < ROWS; r++) {
                    var sum = BYTES_OFFSET * total;
                    for (var i = 0u; i < 8u; i++) {
                        sum += dot4I8Packed(signed_bytes(blocks[r], i), bytes[i]);
                    }
                    sums[r * COLS + c] += weigh_bytes(blocks[r], f32(sum) * scale, f32(total) * scale);
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
                if (lane.index == 0u && t0 + c < layer.end) {
                    put4((t0 + c) * p.pitch, r0 + r, sum * factor);
                }
            }
        }
    }
}
