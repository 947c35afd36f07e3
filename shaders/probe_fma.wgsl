// y[i] = a value that 8 x ROUNDS multiply-adds lead to
//
// Grid   flat over n_tokens x width: one invocation per result.
// Links  step, lane_thread
//
// Not part of any model: the multiply-adds that the adapter does at best. Eight chains hide
// their latency and fit the registers of any processor; they start from memory, so that no
// compiler knows their values.
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
    var a = start;
    var b = start + 1.0;
    var c = start + 2.0;
    var d = start + 3.0;
    var e = start + 4.0;
    var f = start + 5.0;
    var g = start + 6.0;
    var h = start + 7.0;
    for (var i = 0u; i < ROUNDS; i++) {
        a = fma(a, factor, start);
        b = fma(b, factor, start);
        c = fma(c, factor, start);
        d = fma(d, factor, start);
        e = fma(e, factor, start);
        f = fma(f, factor, start);
        g = fma(g, factor, start);
        h = fma(h, factor, start);
    }
    y[team.index] = a + b + c + d + e + f + g + h;
}
