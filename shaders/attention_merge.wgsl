// y[t, h, :] = sum_s e^(top_s - top) part_s / sum_s e^(top_s - top) sum_s, top = max_s top_s
//
// Grid   flat over n_tokens x pitch: one invocation per output, padding included.
// Links  step, lane_thread
//
// Joins what the SPLITS workgroups of `attention` left for each head. Those that had no keys,
// which are the last, are left out.
struct Params {
    head_dim: u32,
    stored: u32,      // head_dim as a part holds it
    part_pitch: u32,  // of a row of parts, in values
    pitch: u32,       // of a row of y, in values
    width: u32,       // heads * head_dim: the part of a row of y that is not padding
    window: u32,      // positions that a token sees
}

@group(0) @binding(0) var<storage, read> parts: array<f32>;    // [T, heads, SPLITS, 8 + stored]
@group(0) @binding(1) var<storage, read_write> y: array<f32>;  // [T, heads, head_dim]
@group(0) @binding(2) var<uniform> p: Params;

fn kernel(group: vec3<u32>, team: Team, lane: Lane) {
    let t = team.index / p.pitch;
    let i = team.index % p.pitch;
    if (t >= n_tokens()) {
        return;
    }
    if (i >= p.width) {
        y[t * p.pitch + i] = 0.0;
        return;
    }
    let size = p.stored + 8u;
    let count = token_position(t) + 1u;
    let pages = (count - 1u) / PAGE + 1u - (count - min(count, p.window)) / PAGE;
    let share = (pages + SPLITS - 1u) / SPLITS;
    let used = (pages + share - 1u) / share;
    let first = t * p.part_pitch + i / p.head_dim * SPLITS * size;
    var top = parts[first];
    for (var s = 1u; s < used; s++) {
        top = max(top, parts[first + s * size]);
    }
    var sum = 0.0;
    var value = 0.0;
    for (var s = 0u; s < used; s++) {
        let at = first + s * size;
        let factor = exp(parts[at] - top);
        sum += factor * parts[at + 1u];
        value += factor * parts[at + 8u + i % p.head_dim];
    }
    y[t * p.pitch + i] = value / sum;
}
