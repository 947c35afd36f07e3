// Output: sums of four neighbouring rows, added to what is there, which is the residual stream.
fn put4(at: u32, row: u32, sum: vec4<f32>) {
    for (var i = 0u; i < 4u; i++) {
        let o = p.first + (row + i) * p.stride;
        if (row + i < p.rows) {
            y[at + o] += sum[i] + bias_of(o);
        }
    }
}
