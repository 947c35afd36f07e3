// Rows: four neighbouring values, added to what is there, which is the residual stream.
fn put_quad(at: u32, v: vec4<f32>) { y[at] += v; }
