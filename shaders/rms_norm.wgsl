// y[i, :] (+)= x[r, :] * w / sqrt(mean(x[r, :]^2) + eps), r = source_row(i)
//
// Grid   flat over rows: one workgroup per row.
// Links  step, rows_*, lane_workgroup*, row_*
//
// The sum of squares is over the stored, zero-padded row; the mean divides by the true width.
struct Params {
    quads: u32,     // stored row, in vectors of four
    width: f32,     // true row, in values
    eps: f32,
}

@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>;        // [T, n]
@group(0) @binding(1) var<storage, read> w: array<vec4<f32>>;        // [n]
@group(0) @binding(2) var<storage, read_write> y: array<vec4<f32>>;  // [rows, n]
@group(0) @binding(3) var<uniform> p: Params;

fn kernel(group: vec3<u32>, team: Team, lane: Lane) {
    let row = team.index;
    if (row >= n_rows()) {
        return;
    }
    let start = source_row(row) * p.quads;
    var squares = vec4<f32>(0.0);
    for (var i = lane.index; i < p.quads; i += lane.count) {
        let v = x[start + i];
        squares += v * v;
    }
    let sum = sum_all(lane, squares.x + squares.y + squares.z + squares.w);
    let scale = 1.0 / sqrt(sum / p.width + p.eps);
    for (var i = lane.index; i < p.quads; i += lane.count) {
        put_quad(row * p.quads + i, x[start + i] * scale * w[i]);
    }
}
