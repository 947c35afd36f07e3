// y[i, j] = x[i, order[j]]
//
// Grid   flat over rows x pitch: one invocation per value.
// Links  step, rows_*, lane_thread
//
// For matrices whose columns are stored in another order than their inputs have (GPTQ, Frantar
// et al. 2022, "act-order").
struct Params {
    width: u32,  // values of a row
    pitch: u32,  // stored values of a row
}

@group(0) @binding(0) var<storage, read> x: array<f32>;        // [rows, n]
@group(0) @binding(1) var<storage, read> order: array<f32>;    // [n], whole numbers below n
@group(0) @binding(2) var<storage, read_write> y: array<f32>;  // [rows, n]
@group(0) @binding(3) var<uniform> p: Params;

fn kernel(group: vec3<u32>, team: Team, lane: Lane) {
    let row = team.index / p.pitch;
    let j = team.index % p.pitch;
    if (row >= n_rows()) {
        return;
    }
    var value = 0.0;
    if (j < p.width) {
        value = x[row * p.pitch + u32(order[j])];
    }
    y[team.index] = value;
}
