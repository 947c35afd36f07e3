// y[t, o(r)] (+)= sum_k W[r, k] x[t, k] + bias[o(r)], o(r) = first + r * stride
//
// Grid   (teams of four rows, 2-D beyond the limit of one dimension, tokens in z).
//        SPAN is the most lanes that a team may have; WG divides eight times as many.
// Links  step, rows_*, lane_teams, weight_*, blocks_*, bytes_*, lookup_*, groups_*, order_rows, x_storage, norm_*, out_*, bias_*,
//        matrix_*
//
// As `gemv` with one column, for GPUs. Where lanes take one group of 32 columns each, so that
// weights are read side by side, the activations of neighbouring lanes lie 128 bytes apart, which
// costs a GPU a turn for each lane and load. Here the teams of a workgroup bring the columns of
// a turn to workgroup memory, to places that no two lanes read from one bank at once, and
// normalise them on the way. The blocks are under way meanwhile.
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

@group(0) @binding(0) var<storage, read> w: array<vec4<u32>>;       // [rows, k] packed
@group(0) @binding(3) var<storage, read_write> y: array<f32>;       // [T, n]
@group(0) @binding(7) var<uniform> p: Params;

const ROWS = 4u;
// Vectors of activations in a turn for each lane: a group. And the room that they have, of which one is unused.
const OWN = 8u;
const PITCH = OWN + 1u;
// The room of their sums.
const SUMS = OWN + 4u;

// A turn of a team: a step of the loop over columns.
struct Turn {
    first: u32,  // group of the row
    lanes: u32,  // of the team
    index: u32,  // of this invocation in it
}

var<workgroup> staged: array<vec4<f32>, SPAN * PITCH>;
// Of each vector of them, where weights have a minimum.
var<workgroup> staged_sums: array<f32, select(1u, SPAN * SUMS, HAS_MIN)>;
var<workgroup> partial: array<f32, select(1u, WG, HAS_NORM)>;  // sums of squares, by team

fn kernel(group: vec3<u32>, team: Team, lane: Lane) {
    start_lookup(lane.index);
    let quads = p.groups * 8u;
    let layer = layer_of(group.z, 1u);
    if (layer.start >= layer.end) {
        return;
    }
    let x0 = input_row(layer.start) * quads;
    for (var base = team.first * ROWS; base < p.rows; base += team.count * ROWS) {
        let r0 = base + lane.team * ROWS;
        var sums = vec4<f32>(0.0);
        var squares = 0.0;
        for (var first = 0u; first < p.groups; first += team.lanes) {
            let turn = Turn(first, team.lanes, lane.index);
            var rows: array<Blocks, ROWS>;
            for (var r = 0u; r < ROWS; r++) {
                // Rows beyond the last repeat it, and count for nothing.
                rows[r] = blocks(layer.weights + min(r0 + r, p.rows - 1u), turn);
            }
            workgroupBarrier();
            for (var j = 0u; j < SPAN * OWN / WG; j++) {
                let i = lane.local + j * WG;
                let at = first * 8u + i;
                if (i < team.lanes * OWN) {
                    // Zeros beyond the row, whatever the weights there.
                    var v = vec4<f32>(0.0);
                    if (at < quads) {
                        v = x4(x0 + at);
                        if (HAS_NORM) {
                            squares += dot(v, v);
                            v *= gain4(at);
                        }
                    }
                    staged[place(i, team.lanes)] = v;
                    if (HAS_MIN) {
                        staged_sums[i / OWN * SUMS + i % OWN] = (v.x + v.y) + (v.z + v.w);
                    }
                }
            }
            workgroupBarrier();
            sums = add_groups(&rows, turn, sums);
        }
        if (HAS_NORM) {
            let part = subgroupAdd(squares);
            if (lane.index == 0u) {
                partial[lane.team] = part;
            }
            workgroupBarrier();
            var all = 0.0;
            for (var i = 0u; i < team.here; i++) {
                all += partial[i];
            }
            sums *= 1.0 / sqrt(all / p.width + p.eps);
        }
        let sum = sum_all4(lane, sums);
        if (lane.index == 0u) {
            put4(result_row(layer.start) * p.pitch, r0, sum);
        }
    }
}
