// y[t, :] = scale E[id_t, :]
//
// Grid   flat over n_tokens x k / 32: one invocation per group of 32 weights.
// Links  step, lane_thread, weight_*, blocks_*, bytes_*, lookup_*, order_*
//
// A table that exceeds one binding is split by rows into shards, each with a launch of its
// own; a token's row is written by the launch whose shard holds it.
struct Params {
    groups: u32,     // of 32 weights in a row
    first_row: u32,  // of this shard
    rows: u32,       // in this shard
    scale: f32,
}

@group(0) @binding(0) var<storage, read> w: array<vec4<u32>>;             // [rows, k] packed
@group(0) @binding(2) var<storage, read_write> y: array<vec4<f32>>;       // [T, k]
@group(0) @binding(3) var<uniform> p: Params;

fn kernel(group: vec3<u32>, team: Team, lane: Lane) {
    let t = team.index / p.groups;
    let g = team.index % p.groups;
    if (t >= n_tokens()) {
        return;
    }
    let row = token_id(t) - p.first_row;  // wraps for a row of an earlier shard
    if (row >= p.rows) {
        return;
    }
    let b = block(block_at(row, g), g);
    for (var i = 0u; i < 8u; i++) {
        var v = quad(b, i);
        if (HAS_SCALE) {
            let dm = scale_min(b, i);
            v = v * dm.x + dm.y;
        }
        y[(t * p.groups + g) * 8u + i] = v * p.scale;
    }
}
