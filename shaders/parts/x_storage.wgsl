// Activations through a storage buffer.
@group(0) @binding(2) var<storage, read> x: array<vec4<f32>>;  // [T, k]

fn x4(i: u32) -> vec4<f32> { return x[i]; }
