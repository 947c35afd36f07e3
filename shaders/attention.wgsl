// y[t, h, :] = sum_j softmax_j(scale q[t, h, :] . k[j, :]) v[j, :], j <= pos_t
//
// Grid   (kv_heads x blocks of HEADS query heads, n_tokens, splits of the span).
// Links  step, lane_workgroup*, kv_*, span_*, cap_*, pages_*
//
// The query heads that share a KV head are the rows of one tile, so each key and value is
// read once for HEADS of them. Keys come a page at a time, whole keys to an invocation; the
// softmax is online (Milakov and Gimelshein 2018) in f32, with the running sum kept per
// invocation and reduced once at the end. For the values the workgroup is PARTS rows of OCTS
// invocations: each owns a group of eight outputs (ITEMS groups, where a head has more than
// there are invocations) of all HEADS, over every PARTS-th key of the page.
struct Params {
    kv_heads: u32,
    group_heads: u32,  // query heads per KV head
    blocks: u32,       // ceil(group_heads / HEADS)
    head_dim: u32,
    scale: f32,
    q_pitch: u32,      // of a row of q, in values
    pitch: u32,        // of a row of y, in values
    width: u32,        // the part of a row of y that is not padding
    window: u32,       // positions that a token sees, the last ones with its own
    cap: f32,          // what no score exceeds, where there is a cap
    ring: u32,         // pages of a sequence, where they are used in turn
}

@group(0) @binding(0) var<storage, read> q: array<vec4<f32>>;     // [T, heads, OCTS * 8]
@group(0) @binding(1) var<storage, read> k: array<KvOct>;         // [pages, kv_heads, PAGE, OCTS * 8]
@group(0) @binding(2) var<storage, read> v: array<KvOct>;         // [pages, kv_heads, PAGE, OCTS * 8]
@group(0) @binding(3) var<storage, read_write> y: array<f32>;     // [T, heads, head_dim], or parts
@group(0) @binding(4) var<uniform> p: Params;

const LOWEST = -3.0e38;
const PARTS = max(1u, WG / OCTS);           // invocations that share eight outputs of a head
const FOURS = (HEADS + 3u) / 4u;            // heads, four at a time
const ITEMS = (OCTS + WG - 1u) / WG;        // groups of eight outputs of an invocation
const AT_ONCE = max(1u, 4u / HEADS);        // values that an invocation has under way

var<workgroup> queries: array<vec4<f32>, HEADS * OCTS * 2>;
var<workgroup> weights: array<vec4<f32>, FOURS * PAGE>;  // of each key, for four heads
var<workgroup> parts_low: array<vec4<f32>, WG>;
var<workgroup> parts_high: array<vec4<f32>, WG>;

// Loops over heads are written out, up to the eight that there may be: not every compiler unrolls them, and
// what is indexed by a counter then lies in memory. Heads a are the first four, b the others.

// What eight values of a key add to the score of head h.
fn head_dot(h: u32, o: u32, low: vec4<f32>, high: vec4<f32>) -> f32 {
    if (h >= HEADS) {
        return 0.0;
    }
    let at = (h * OCTS + o) * 2u;
    return dot(queries[at], low) + dot(queries[at + 1u], high);
}

fn capped4(s: vec4<f32>) -> vec4<f32> { return vec4<f32>(capped(s.x), capped(s.y), capped(s.z), capped(s.w)); }

// Eight outputs of each head, for each of an invocation's groups.
struct Outputs {
    low: array<vec4<f32>, 8 * ITEMS>,
    high: array<vec4<f32>, 8 * ITEMS>,
}

fn shrink_heads(out: ptr<function, Outputs>, at: u32, a: vec4<f32>, b: vec4<f32>) {
    (*out).low[at + 0u] *= a.x;
    (*out).high[at + 0u] *= a.x;
    if (HEADS > 1u) {
        (*out).low[at + 1u] *= a.y;
        (*out).high[at + 1u] *= a.y;
    }
    if (HEADS > 2u) {
        (*out).low[at + 2u] *= a.z;
        (*out).high[at + 2u] *= a.z;
    }
    if (HEADS > 3u) {
        (*out).low[at + 3u] *= a.w;
        (*out).high[at + 3u] *= a.w;
    }
    if (HEADS > 4u) {
        (*out).low[at + 4u] *= b.x;
        (*out).high[at + 4u] *= b.x;
    }
    if (HEADS > 5u) {
        (*out).low[at + 5u] *= b.y;
        (*out).high[at + 5u] *= b.y;
    }
    if (HEADS > 6u) {
        (*out).low[at + 6u] *= b.z;
        (*out).high[at + 6u] *= b.z;
    }
    if (HEADS > 7u) {
        (*out).low[at + 7u] *= b.w;
        (*out).high[at + 7u] *= b.w;
    }
}

fn add_heads(
    out: ptr<function, Outputs>,
    at: u32,
    low: vec4<f32>,
    high: vec4<f32>,
    a: vec4<f32>,
    b: vec4<f32>,
) {
    (*out).low[at + 0u] += low * a.x;
    (*out).high[at + 0u] += high * a.x;
    if (HEADS > 1u) {
        (*out).low[at + 1u] += low * a.y;
        (*out).high[at + 1u] += high * a.y;
    }
    if (HEADS > 2u) {
        (*out).low[at + 2u] += low * a.z;
        (*out).high[at + 2u] += high * a.z;
    }
    if (HEADS > 3u) {
        (*out).low[at + 3u] += low * a.w;
        (*out).high[at + 3u] += high * a.w;
    }
    if (HEADS > 4u) {
        (*out).low[at + 4u] += low * b.x;
        (*out).high[at + 4u] += high * b.x;
    }
    if (HEADS > 5u) {
        (*out).low[at + 5u] += low * b.y;
        (*out).high[at + 5u] += high * b.y;
    }
    if (HEADS > 6u) {
        (*out).low[at + 6u] += low * b.z;
        (*out).high[at + 6u] += high * b.z;
    }
    if (HEADS > 7u) {
        (*out).low[at + 7u] += low * b.w;
        (*out).high[at + 7u] += high * b.w;
    }
}

// Adds up what the parts of the workgroup have of head h, of those from `head` on, and leaves the result.
fn finish_head(
    t: u32,
    group: vec3<u32>,
    lane: Lane,
    heads: u32,
    head: u32,
    h: u32,
    o: u32,
    own_low: vec4<f32>,
    own_high: vec4<f32>,
    top: f32,
    sum: f32,
) {
    let part = select(lane.index / OCTS, 0u, PARTS == 1u);
    let oct = select(lane.index % OCTS, lane.index, PARTS == 1u);
    var low = own_low;
    var high = own_high;
    if (PARTS > 1u) {
        parts_low[lane.index] = low;
        parts_high[lane.index] = high;
        workgroupBarrier();
        if (part == 0u) {
            for (var i = 1u; i < PARTS; i++) {
                low += parts_low[i * OCTS + oct];
                high += parts_high[i * OCTS + oct];
            }
        }
        workgroupBarrier();
    }
    if (h < heads && part == 0u && o < OCTS) {
        finish(t, group, head + h, o * 8u, low, high, top, sum);
    }
}

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

    // Written so that with one part the compiler sees that all invocations read one weight.
    let part = select(lane.index / OCTS, 0u, PARTS == 1u);
    let oct = select(lane.index % OCTS, lane.index, PARTS == 1u);
    var top_a = vec4<f32>(LOWEST);
    var top_b = vec4<f32>(LOWEST);
    var sum_a = vec4<f32>(0.0);
    var sum_b = vec4<f32>(0.0);
    var out: Outputs;

    let sequence = token_sequence(t);
    let count = token_position(t) + 1u;
    let unseen = count - min(count, p.window);
    let before = unseen / PAGE;
    let pages = (count + PAGE - 1u) / PAGE - before;
    let end = before + end_page(pages, group);
    for (var n = before + first_page(pages, group); n < end; n++) {
        let page_head = layer_page(sequence, n) * p.kv_heads + kv_head;
        let here = min(PAGE, count - n * PAGE);
        let start = max(unseen, n * PAGE) - n * PAGE;
        var seen_a = top_a;
        var seen_b = top_b;
        for (var j = start + lane.index; j < here; j += WG) {
            var score_a = vec4<f32>(0.0);
            var score_b = vec4<f32>(0.0);
            for (var o = 0u; o < OCTS; o++) {
                let scale = kv_scale(k[kv_factor(page_head, j, o / KV_BLOCK)], j, o / KV_BLOCK);
                let key = k[kv_oct(page_head, j, o)];
                let low = kv_low(key, scale);
                let high = kv_high(key, scale);
                score_a += vec4<f32>(
                    head_dot(0u, o, low, high),
                    head_dot(1u, o, low, high),
                    head_dot(2u, o, low, high),
                    head_dot(3u, o, low, high),
                );
                if (HEADS > 4u) {
                    score_b += vec4<f32>(
                        head_dot(4u, o, low, high),
                        head_dot(5u, o, low, high),
                        head_dot(6u, o, low, high),
                        head_dot(7u, o, low, high),
                    );
                }
            }
            score_a = capped4(score_a);
            weights[j] = score_a;
            seen_a = max(seen_a, score_a);
            if (HEADS > 4u) {
                score_b = capped4(score_b);
                weights[(FOURS - 1u) * PAGE + j] = score_b;
                seen_b = max(seen_b, score_b);
            }
        }
        seen_a = max_all4(lane, seen_a);
        let shrink_a = exp(top_a - seen_a);
        sum_a *= shrink_a;
        top_a = seen_a;
        var shrink_b = vec4<f32>(1.0);
        if (HEADS > 4u) {
            seen_b = max_all4(lane, seen_b);
            shrink_b = exp(top_b - seen_b);
            sum_b *= shrink_b;
            top_b = seen_b;
        }
        for (var item = 0u; item < ITEMS; item++) {
            shrink_heads(&out, item * 8u, shrink_a, shrink_b);
        }
        for (var j = start + lane.index; j < here; j += WG) {
            let weight_a = exp(weights[j] - top_a);
            weights[j] = weight_a;
            sum_a += weight_a;
            if (HEADS > 4u) {
                let weight_b = exp(weights[(FOURS - 1u) * PAGE + j] - top_b);
                weights[(FOURS - 1u) * PAGE + j] = weight_b;
                sum_b += weight_b;
            }
        }
        workgroupBarrier();
        if (part < PARTS) {
            for (var first = start + part; first < here; first += PARTS * AT_ONCE) {
                for (var item = 0u; item < ITEMS; item++) {
                    let o = min(oct + item * WG, OCTS - 1u);
                    var value: array<KvOct, AT_ONCE>;
                    var scale: array<f32, AT_ONCE>;
                    for (var i = 0u; i < AT_ONCE; i++) {
                        let j = min(first + i * PARTS, here - 1u);
                        value[i] = v[kv_oct(page_head, j, o)];
                        scale[i] = kv_scale(v[kv_factor(page_head, j, o / KV_BLOCK)], j, o / KV_BLOCK);
                    }
                    for (var i = 0u; i < AT_ONCE; i++) {
                        let j = first + i * PARTS;
                        // Keys beyond the last repeat it, and count for nothing.
                        let live = j < here;
                        let low = kv_low(value[i], scale[i]);
                        let high = kv_high(value[i], scale[i]);
                        let at = min(j, here - 1u);
                        let a = select(vec4<f32>(0.0), weights[at], live);
                        let b = select(vec4<f32>(0.0), weights[(FOURS - 1u) * PAGE + at], live);
                        add_heads(&out, item * 8u, low, high, a, b);
                    }
                }
            }
        }
        workgroupBarrier();
    }

    sum_a = sum_all4(lane, sum_a);
    if (HEADS > 4u) {
        sum_b = sum_all4(lane, sum_b);
    }
    for (var item = 0u; item < ITEMS; item++) {
        let o = oct + item * WG;
        let at = item * 8u;
        finish_head(t, group, lane, heads, head, 0u, o, out.low[at + 0u], out.high[at + 0u], top_a.x, sum_a.x);
        if (HEADS > 1u) {
            finish_head(t, group, lane, heads, head, 1u, o, out.low[at + 1u], out.high[at + 1u], top_a.y, sum_a.y);
        }
        if (HEADS > 2u) {
            finish_head(t, group, lane, heads, head, 2u, o, out.low[at + 2u], out.high[at + 2u], top_a.z, sum_a.z);
        }
        if (HEADS > 3u) {
            finish_head(t, group, lane, heads, head, 3u, o, out.low[at + 3u], out.high[at + 3u], top_a.w, sum_a.w);
        }
        if (HEADS > 4u) {
            finish_head(t, group, lane, heads, head, 4u, o, out.low[at + 4u], out.high[at + 4u], top_b.x, sum_b.x);
        }
        if (HEADS > 5u) {
            finish_head(t, group, lane, heads, head, 5u, o, out.low[at + 5u], out.high[at + 5u], top_b.y, sum_b.y);
        }
        if (HEADS > 6u) {
            finish_head(t, group, lane, heads, head, 6u, o, out.low[at + 6u], out.high[at + 6u], top_b.z, sum_b.z);
        }
        if (HEADS > 7u) {
            finish_head(t, group, lane, heads, head, 7u, o, out.low[at + 7u], out.high[at + 7u], top_b.w, sum_b.w);
        }
    }
    // The padding of the row stays zero, whatever the memory held before.
    if (group.x == 0u && group.z == 0u) {
        for (var i = p.width + lane.index; i < p.pitch; i += lane.count) {
            y[t * p.pitch + i] = 0.0;
        }
    }
}
