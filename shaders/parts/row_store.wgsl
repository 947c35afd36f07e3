// Rows: four neighbouring values, written.
fn put_quad(at: u32, v: vec4<f32>) { y[at] = v; }
