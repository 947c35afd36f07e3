// Output: rows 2 i and 2 i + 1 are a gate and its up: y[i] = activated(gate) up (Shazeer 2020).
fn put4(at: u32, row: u32, sum: vec4<f32>) {
    for (var i = 0u; i < 4u; i += 2u) {
        let o = p.first + row + i;
        if (row + i < p.rows) {
            let gate = sum[i] + bias_of(o);
            let up = sum[i + 1u] + bias_of(o + 1u);
            y[at + o / 2u] = activated(gate) * up;
        }
    }
}
