// Activations through a uniform buffer: on software adapters and mobile GPUs far cheaper to
// read than a storage buffer. X4 is the length in vectors, at most what a binding may hold.
@group(0) @binding(2) var<uniform> x: array<vec4<f32>, X4>;  // [T, k]

fn x4(i: u32) -> vec4<f32> { return x[i]; }
