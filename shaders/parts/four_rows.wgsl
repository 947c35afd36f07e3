// What a group of 32 columns contributes to the sums of four rows. The scale of a group is
// applied to its partial sum instead of to each weight: w = d q + m, so sum(w x) =
// d sum(q x) + m sum(x), where sum(x) is shared by the rows.
fn sum4(v: vec4<f32>) -> f32 { return v.x + v.y + v.z + v.w; }

// The sums of both halves of the activations, or all in the first, if they are needed.
fn totals(v: ptr<function, array<vec4<f32>, 8>>) -> vec2<f32> {
    var all: array<vec4<f32>, 2>;
    if (HAS_MIN) {
        for (var i = 0u; i < 8u; i++) {
            all[select(0u, i / 4u, HALVES)] += (*v)[i];
        }
    }
    return vec2<f32>(sum4(all[0]), sum4(all[1]));
}

// `blocks` of the four rows, `v` the activations, `all` their totals: the sums, with what they had before.
fn four_rows(
    blocks: ptr<function, array<Block, 4>>,
    v: ptr<function, array<vec4<f32>, 8>>,
    all: vec2<f32>,
    before: vec4<f32>,
) -> vec4<f32> {
    var sums = before;
    // Mesa unrolls a loop that walks an array whole, however long its body is; otherwise it would
    // choose the words of a block by comparing i.
    for (var r = 0u; r < 4u; r++) {
        var parts = vec2<f32>(select(before[r], 0.0, HAS_SCALE), 0.0);
        for (var i = 0u; i < 8u; i++) {
            let half = select(0u, i / 4u, HALVES);
            let q = quad((*blocks)[r], i);
            let x = (*v)[i];
            // Where operations count, in one chain; where memory does, it is ready sooner in two steps.
            if (NARROW) {
                parts[half] = fma(q.w, x.w, fma(q.z, x.z, fma(q.y, x.y, fma(q.x, x.x, parts[half]))));
            } else {
                parts[half] += dot(q, x);
            }
        }
        if (HAS_SCALE) {
            parts.x = before[r] + weigh((*blocks)[r], parts, all);
        }
        sums[r] = parts.x;
    }
    return sums;
}
