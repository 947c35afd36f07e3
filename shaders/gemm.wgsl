// y[t, o(r)] (+)= sum_k W[r, k] x[t, k] + bias[o(r)], o(r) = first + r * stride
//
// Grid   (tiles of TILE rows, as often as the columns are split; 2-D beyond the limit of one
//        dimension; tiles of TILE tokens in z).
// Links  step, rows_*, lane_tile, weight_*, blocks_*, bytes_*, lookup_*, order_rows, x_storage, out_*, bias_*, matrix_*
//
// SIDE by SIDE invocations share a tile of tokens and rows, each with FRAG x FRAG sums in
// registers. Half a group of columns at a time is brought to workgroup memory, where a weight,
// decoded once, serves all tokens of the tile. An invocation then takes four columns of FRAG
// rows and of FRAG tokens, one vector each, for 4 FRAG FRAG multiply-adds. Where there are few
// tiles, several workgroups share the columns, and `gemm_merge` adds up what they found.
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

const TILE = SIDE * FRAG;
const LINES = TILE / 4u;  // of tokens or rows that are a stride apart
const FOURS = FRAG / 4u;  // of neighbouring rows that an invocation owns

// Four columns of a token or row; see `place`.
var<workgroup> tokens: array<vec4<f32>, TILE * 4>;
var<workgroup> weights: array<vec4<f32>, TILE * 4>;

// Where columns 4 quad .. 4 quad + 3 of a line lie. Eight neighbouring lines fill all banks.
fn place(line: u32, quad: u32) -> u32 { return line * 4u + (quad ^ (line / 2u % 4u)); }

// The row of line i, so that neighbouring invocations, which own four neighbouring rows each,
// read neighbouring lines.
fn row_of(line: u32) -> u32 { return line % LINES * 4u + line / LINES; }

fn bring_row(b: Block, line: u32, half: u32) {
    for (var i = 0u; i < 4u; i++) {
        var v = quad(b, half * 4u + i);
        if (HAS_SCALE) {
            let dm = scale_min(b, half * 4u + i);
            v = v * dm.x + dm.y;
        }
        weights[place(line, i)] = v;
    }
}

fn multiply(sums: ptr<function, array<vec4<f32>, FRAG * FOURS>>, down: u32, across: u32) {
    for (var i = 0u; i < 4u; i++) {
        var b: array<vec4<f32>, FRAG>;
        for (var n = 0u; n < FRAG; n++) {
            b[n] = weights[place(across, i) + n * SIDE * 4u];
        }
        for (var m = 0u; m < FRAG; m++) {
            let a = tokens[place(down, i) + m * SIDE * 4u];
            for (var c = 0u; c < 4u; c++) {
                for (var n = 0u; n < FOURS; n++) {
                    let four = vec4<f32>(b[n][c], b[n + FOURS][c], b[n + 2u * FOURS][c], b[n + 3u * FOURS][c]);
                    (*sums)[m * FOURS + n] += a[c] * four;
                }
            }
        }
    }
}

fn kernel(group: vec3<u32>, team: Team, lane: Lane) {
    let tiles = (p.rows + TILE - 1u) / TILE;
    let split = team.index / tiles;
    let layer = layer_of(group.z, TILE);
    if (split >= p.splits || layer.start >= layer.end) {
        return;
    }
    let share = (p.groups + p.splits - 1u) / p.splits;
    let end = min((split + 1u) * share, p.groups);
    let row0 = team.index % tiles * TILE;
    let across = lane.index % SIDE;  // which rows
    let down = lane.index / SIDE;    // which tokens

    // sums[m FOURS + n]: token down + m SIDE, rows 4 (across + n SIDE) .. + 3.
    var sums: array<vec4<f32>, FRAG * FOURS>;
    for (var at = split * share * 2u; at < end * 2u; at++) {
        let g = at / 2u;
        let half = at % 2u;
        // First the rows of the tile, then its tokens, in four strides.
        for (var i = lane.index; i < 2u * TILE; i += WG) {
            if (i < TILE) {
                bring_row(block(block_at(layer.weights + min(row0 + row_of(i), p.rows - 1u), g), g), i, half);
            } else {
                for (var j = 0u; j < 4u; j++) {
                    let line = (i - TILE) / 4u + j * LINES;
                    // Tokens beyond the batch repeat its last; nothing of them is written.
                    let t = input_row(min(layer.start + line, layer.end - 1u));
                    let quad = i % 4u;
                    tokens[place(line, quad)] = x4(t * p.groups * 8u + at * 4u + quad);
                }
            }
        }
        workgroupBarrier();
        multiply(&sums, down, across);
        workgroupBarrier();
    }
    for (var m = 0u; m < FRAG; m++) {
        let t = layer.start + down + m * SIDE;
        if (t < layer.end) {
            for (var n = 0u; n < FOURS; n++) {
                let row = row0 + (across + n * SIDE) * 4u;
                put4(result_row(t) * p.pitch + split * p.part, row, sums[m * FOURS + n]);
            }
        }
    }
}
