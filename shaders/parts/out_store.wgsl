// Output: written.
fn put(i: u32, v: f32) { y[i] = v; }
