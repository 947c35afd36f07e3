// Span of the cache: one workgroup attends to all of it, and the result is whole.
fn first_page(pages: u32, group: vec3<u32>) -> u32 { return 0u; }

fn end_page(pages: u32, group: vec3<u32>) -> u32 { return pages; }

// Eight outputs of a head from `dim` on, before the division by `sum`.
fn finish(t: u32, group: vec3<u32>, head: u32, dim: u32, low: vec4<f32>, high: vec4<f32>, top: f32, sum: f32) {
    let at = t * p.pitch + head * p.head_dim;
    for (var d = 0u; d < 4u; d++) {
        if (dim + d < p.head_dim) {
            y[at + dim + d] = low[d] / sum;
        }
        if (dim + 4u + d < p.head_dim) {
            y[at + dim + 4u + d] = high[d] / sum;
        }
    }
}
