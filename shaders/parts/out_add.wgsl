// Output: added to what is there, which is the residual stream.
fn put(i: u32, v: f32) { y[i] += v; }
