// y[t, o(r)] (+)= sum_k W[r, k] x[t, k] + bias[o(r)], o(r) = first + r * stride
//
// Grid   (tiles of 32 FN rows, 2-D beyond the limit of one dimension, tiles of 32 FM tokens in z).
// Links  step, rows_*, lane_workgroup, weight_*, x_storage, out_*, bias_*
//
// 64 invocations, eight by eight, share a tile of tokens and rows, each with 4 FM x 4 FN sums
// in registers. Sixteen columns at a time are brought to workgroup memory: a weight is decoded
// once for all tokens of the tile. There they lie by column, four neighbouring tokens or rows
// in a vector, so that an invocation reads vectors only; the four-by-four transposition is
// done in registers, since invocations may not write single components of a shared vector.
struct Params {
    groups: u32,  // of 32 weights in a row
    rows: u32,    // in this shard, with the zero rows that fill the padding of y
    pitch: u32,   // of a row of y, in values
    first: u32,   // output of row 0
    stride: u32,  // outputs from one row to the next
}

@group(0) @binding(0) var<storage, read> w: array<vec4<u32>>;   // [rows, k] packed
@group(0) @binding(1) var<storage, read> scales: array<u32>;    // [rows, k / 32] packed
@group(0) @binding(3) var<storage, read_write> y: array<f32>;   // [T, n]
@group(0) @binding(5) var<uniform> p: Params;

const COLUMNS = 16u;  // of a step: half a group

var<workgroup> tokens: array<vec4<f32>, COLUMNS * 8 * FM>;   // [column, four tokens]
var<workgroup> weights: array<vec4<f32>, COLUMNS * 8 * FN>;  // [column, four rows]

fn kernel(group: vec3<u32>, team: Team, lane: Lane) {
    let row0 = team.index * 32u * FN;
    let token0 = group.z * 32u * FM;
    let last_token = n_rows() - 1u;
    let across = lane.index % 8u;  // which rows
    let down = lane.index / 8u;    // which tokens
    // sums[(4 m + i) FN + n]: token 4 m + i of this invocation, rows 4 n .. 4 n + 3.
    var sums: array<vec4<f32>, 4 * FM * FN>;
    for (var step_at = 0u; step_at < p.groups * 2u; step_at++) {
        let g = step_at / 2u;
        let half = step_at % 2u * 4u;  // first quad of the half group
        for (var i = lane.index; i < 32u * FM; i += 64u) {
            let column = i / (8u * FM);
            let four = i % (8u * FM);
            var v: array<vec4<f32>, 4>;
            for (var j = 0u; j < 4u; j++) {
                // Tokens beyond the batch repeat its last; nothing of them is written.
                let t = min(token0 + four * 4u + j, last_token);
                v[j] = x4((t * p.groups + g) * 8u + half + column);
            }
            for (var c = 0u; c < 4u; c++) {
                tokens[(column * 4u + c) * 8u * FM + four] = vec4<f32>(v[0][c], v[1][c], v[2][c], v[3][c]);
            }
        }
        for (var i = lane.index; i < 32u * FN; i += 64u) {
            let column = i / (8u * FN);
            let four = i % (8u * FN);
            var v: array<vec4<f32>, 4>;
            for (var j = 0u; j < 4u; j++) {
                let b = block(min(row0 + four * 4u + j, p.rows - 1u) * p.groups + g);
                v[j] = quad(b, half + column);
                if (HAS_SCALE) {
                    let dm = scale_min(b);
                    v[j] = v[j] * dm.x + dm.y;
                }
            }
            for (var c = 0u; c < 4u; c++) {
                weights[(column * 4u + c) * 8u * FN + four] = vec4<f32>(v[0][c], v[1][c], v[2][c], v[3][c]);
            }
        }
        workgroupBarrier();
        for (var c = 0u; c < COLUMNS; c++) {
            var b: array<vec4<f32>, FN>;
            for (var n = 0u; n < FN; n++) {
                b[n] = weights[c * 8u * FN + across * FN + n];
            }
            for (var m = 0u; m < FM; m++) {
                let a = tokens[c * 8u * FM + down * FM + m];
                for (var i = 0u; i < 4u; i++) {
                    for (var n = 0u; n < FN; n++) {
                        sums[(4u * m + i) * FN + n] += a[i] * b[n];
                    }
                }
            }
        }
        workgroupBarrier();
    }
    for (var i = 0u; i < 4u * FM; i++) {
        let t = token0 + down * 4u * FM + i;
        if (t <= last_token) {
            for (var n = 0u; n < FN; n++) {
                put4(t * p.pitch, row0 + (across * FN + n) * 4u, sums[i * FN + n]);
            }
        }
    }
}
