// y[i, :] = (x[r, :] - mean(x[r, :])) * w / sqrt(var(x[r, :]) + eps) + bias, r = source_row(i)
//
// Grid   flat over rows: one workgroup per row.
// Links  step, rows_*, lane_workgroup*, row_*
//
// The mean first, then squares about it: their difference would lose what large means have in common.
struct Params {
    quads: u32,  // stored row, in vectors of four
    width: f32,  // true row, in values
    eps: f32,
}

@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>;        // [T, n]
@group(0) @binding(1) var<storage, read> w: array<vec4<f32>>;        // [n]
@group(0) @binding(2) var<storage, read> b: array<vec4<f32>>;        // [n]
@group(0) @binding(3) var<storage, read_write> y: array<vec4<f32>>;  // [rows, n]
@group(0) @binding(4) var<uniform> p: Params;

fn kernel(group: vec3<u32>, team: Team, lane: Lane) {
    let row = team.index;
    if (row >= n_rows()) {
        return;
    }
    let start = source_row(row) * p.quads;
    var sums = vec4<f32>(0.0);
    for (var i = lane.index; i < p.quads; i += lane.count) {
        sums += x[start + i];
    }
    let mean = sum_all(lane, sums.x + sums.y + sums.z + sums.w) / p.width;
    var squares = vec4<f32>(0.0);
    for (var i = lane.index; i < p.quads; i += lane.count) {
        // The padding is no part of the row.
        let inside = vec4<f32>(vec4<u32>(i * 4u) + vec4<u32>(0u, 1u, 2u, 3u)) < vec4<f32>(p.width);
        let v = select(vec4<f32>(0.0), x[start + i] - mean, inside);
        squares += v * v;
    }
    let sum = sum_all(lane, squares.x + squares.y + squares.z + squares.w);
    let scale = 1.0 / sqrt(sum / p.width + p.eps);
    for (var i = lane.index; i < p.quads; i += lane.count) {
        // Factors and offsets of the padding are zero, which it stays.
        put_quad(row * p.quads + i, (x[start + i] - mean) * scale * w[i] + b[i]);
    }
}
