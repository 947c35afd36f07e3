// y[t, h, :] = sum_j softmax_j(scale q[t, h, :] . k[j, :]) v[j, :], j <= pos_t
//
// Grid   (kv_heads x blocks of HEADS query heads, n_tokens, splits of the span).
// Links  step, lane_workgroup*, kv_*, span_*
//
// The query heads that share a KV head are the rows of one tile, so each key and value is
// read once for HEADS of them. Keys come a page at a time, one per invocation; the softmax is
// online (Milakov and Gimelshein 2018) in f32, with the running sum kept per invocation and
// reduced once at the end. Values: each invocation owns ITEMS groups of eight outputs.
struct Params {
    kv_heads: u32,
    group_heads: u32,  // query heads per KV head
    blocks: u32,       // ceil(group_heads / HEADS)
    head_dim: u32,
    scale: f32,
    q_pitch: u32,      // of a row of q, in values
    pitch: u32,        // of a row of y, in values
    width: u32,        // the part of a row of y that is not padding
}

@group(0) @binding(0) var<storage, read> q: array<vec4<f32>>;     // [T, heads, OCTS * 8]
@group(0) @binding(1) var<storage, read> k: array<KvOct>;         // [pages, kv_heads, PAGE, OCTS * 8]
@group(0) @binding(2) var<storage, read> v: array<KvOct>;         // [pages, kv_heads, PAGE, OCTS * 8]
@group(0) @binding(3) var<storage, read_write> y: array<f32>;     // [T, heads, head_dim], or parts
@group(0) @binding(4) var<uniform> p: Params;

const LOWEST = -3.0e38;

var<workgroup> queries: array<vec4<f32>, HEADS * OCTS * 2>;
var<workgroup> weights: array<f32, HEADS * PAGE>;
var<workgroup> shrink: array<f32, HEADS>;

fn kernel(group: vec3<u32>, team: Team, lane: Lane) {
    let t = group.y;
    let kv_head = group.x / p.blocks;
    let first = group.x % p.blocks * HEADS;               // among the heads of this KV head
    let heads = min(HEADS, p.group_heads - first);
    let head = kv_head * p.group_heads + first;           // among all heads
    for (var i = lane.index; i < HEADS * OCTS * 2u; i += lane.count) {
        var value = vec4<f32>(0.0);
        if (i < heads * OCTS * 2u) {
            value = q[t * p.q_pitch / 4u + head * OCTS * 2u + i] * p.scale;
        }
        queries[i] = value;
    }
    workgroupBarrier();

    var top: array<f32, HEADS>;
    var sum: array<f32, HEADS>;
    for (var h = 0u; h < HEADS; h++) {
        top[h] = LOWEST;
    }
    var low: array<vec4<f32>, ITEMS>;
    var high: array<vec4<f32>, ITEMS>;

    let sequence = token_sequence(t);
    let count = token_position(t) + 1u;
    let pages = (count + PAGE - 1u) / PAGE;
    let end = end_page(pages, group);
    for (var n = first_page(pages, group); n < end; n++) {
        let page = (page_of(sequence, n) * p.kv_heads + kv_head) * PAGE * OCTS;
        let here = min(PAGE, count - n * PAGE);
        var score: array<f32, HEADS>;
        if (lane.index < here) {
            for (var o = 0u; o < OCTS; o++) {
                let key = k[page + lane.index * OCTS + o];
                let key_low = kv_low(key);
                let key_high = kv_high(key);
                for (var h = 0u; h < HEADS; h++) {
                    let at = (h * OCTS + o) * 2u;
                    score[h] += dot(queries[at], key_low) + dot(queries[at + 1u], key_high);
                }
            }
        }
        for (var h = 0u; h < HEADS; h++) {
            let seen = max_all(lane, select(LOWEST, score[h], lane.index < here));
            let next = max(top[h], seen);
            let factor = exp(top[h] - next);
            let weight = select(0.0, exp(score[h] - next), lane.index < here);
            top[h] = next;
            sum[h] = sum[h] * factor + weight;
            weights[h * PAGE + lane.index] = weight;
            if (lane.index == 0u) {
                shrink[h] = factor;
            }
        }
        workgroupBarrier();
        for (var item = 0u; item < ITEMS; item++) {
            let i = lane.index + item * PAGE;
            if (i < HEADS * OCTS) {
                let h = i / OCTS;
                let o = i % OCTS;
                var a = low[item] * shrink[h];
                var b = high[item] * shrink[h];
                for (var j = 0u; j < here; j++) {
                    let value = v[page + j * OCTS + o];
                    let weight = weights[h * PAGE + j];
                    a += kv_low(value) * weight;
                    b += kv_high(value) * weight;
                }
                low[item] = a;
                high[item] = b;
            }
        }
        workgroupBarrier();
    }

    // Sums and largest scores by head, for whoever owns the head's outputs.
    for (var h = 0u; h < HEADS; h++) {
        let total = sum_all(lane, sum[h]);
        if (lane.index == 0u) {
            shrink[h] = total;
            weights[h] = top[h];
        }
    }
    workgroupBarrier();
    for (var item = 0u; item < ITEMS; item++) {
        let i = lane.index + item * PAGE;
        if (i < heads * OCTS) {
            let h = i / OCTS;
            finish(t, group, head + h, i % OCTS * 8u, low[item], high[item], weights[h], shrink[h]);
        }
    }
    // The padding of the row stays zero, whatever the memory held before.
    if (group.x == 0u && group.z == 0u) {
        for (var i = p.width + lane.index; i < p.pitch; i += lane.count) {
            y[t * p.pitch + i] = 0.0;
        }
    }
}
