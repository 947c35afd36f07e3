// Span of the cache: SPLITS workgroups (the grid's z) share its pages, and each leaves its sum,
// its largest score and its part of the result for `attention_merge`.
fn share(pages: u32) -> u32 { return (pages + SPLITS - 1u) / SPLITS; }

fn first_page(pages: u32, group: vec3<u32>) -> u32 { return group.z * share(pages); }

fn end_page(pages: u32, group: vec3<u32>) -> u32 { return min(pages, (group.z + 1u) * share(pages)); }

// A part: largest score, sum, six unused, then OCTS * 8 outputs.
fn finish(t: u32, group: vec3<u32>, head: u32, dim: u32, low: vec4<f32>, high: vec4<f32>, top: f32, sum: f32) {
    let at = t * p.pitch + (head * SPLITS + group.z) * (OCTS * 8u + 8u);
    if (dim == 0u) {
        y[at] = top;
        y[at + 1u] = sum;
    }
    for (var d = 0u; d < 4u; d++) {
        y[at + 8u + dim + d] = low[d];
        y[at + 12u + dim + d] = high[d];
    }
}
