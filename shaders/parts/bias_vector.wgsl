// A bias, one value per output.
@group(0) @binding(5) var<storage, read> bias: array<f32>;  // [n]

fn bias_of(row: u32) -> f32 { return bias[row]; }
