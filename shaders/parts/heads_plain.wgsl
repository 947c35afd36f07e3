// Heads: queries and keys as they are.
fn head_factor(t: u32, head: u32) -> f32 { return 1.0; }

fn normed(value: vec2<f32>, factor: f32, head: u32, pair: u32) -> vec2<f32> { return value; }
