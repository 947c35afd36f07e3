// y[i] = a value that 12 x ROUNDS multiply-adds lead to
//
// Grid   flat over n_tokens x width: one invocation per result.
// Links  step, lane_thread
//
// Not part of any model: the multiply-adds that the adapter does at best. Twelve chains hide
// their latency, also where a multiply-add is two operations, and fit the registers of any
// processor; they start from memory, so that no compiler knows their values.
struct Params {
    width: u32,  // of a row, in values
}

@group(0) @binding(0) var<storage, read> x: array<f32>;        // [T, n]
@group(0) @binding(1) var<storage, read_write> y: array<f32>;  // [T, n]
@group(0) @binding(2) var<uniform> p: Params;

fn kernel(group: vec3<u32>, team: Team, lane: Lane) {
    if (team.index >= n_tokens() * p.width) {
        return;
    }
    // Buffers start as zeros; the chains tend to 1000 and never to denormals, which are slow.
    let start = x[team.index] + 1.0;
    let factor = x[team.index] + 0.999;
    var a = start + vec4<f32>(0.0, 1.0, 2.0, 3.0);
    var b = a + 4.0;
    var c = a + 8.0;
    for (var i = 0u; i < ROUNDS; i++) {
        a = fma(a, vec4<f32>(factor), vec4<f32>(start));
        b = fma(b, vec4<f32>(factor), vec4<f32>(start));
        c = fma(c, vec4<f32>(factor), vec4<f32>(start));
    }
    y[team.index] = dot(a + b + c, vec4<f32>(1.0));
}
