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

var<workgroup> queries: array<vec4<f32>, HEADS * OCTS * 2>;
var<workgroup> weights: array<f32, HEADS * PAGE>;
var<workgroup> parts_low: array<vec4<f32>, WG>;
var<workgroup> parts_high: array<vec4<f32>, WG>;

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
    var top: array<vec4<f32>, FOURS>;
    var sum: array<vec4<f32>, FOURS>;
    for (var f = 0u; f < FOURS; f++) {
        top[f] = vec4<f32>(LOWEST);
    }
    var low: array<vec4<f32>, HEADS * ITEMS>;
    var high: array<vec4<f32>, HEADS * ITEMS>;

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
        var seen = top;
        for (var j = start + lane.index; j < here; j += WG) {
            var score: array<f32, HEADS>;
            for (var o = 0u; o < OCTS; o++) {
                let scale = kv_scale(k[kv_factor(page_head, j, o / KV_BLOCK)], j, o / KV_BLOCK);
                let key = k[kv_oct(page_head, j, o)];
                let key_low = kv_low(key, scale);
                let key_high = kv_high(key, scale);
                for (var h = 0u; h < HEADS; h++) {
                    let at = (h * OCTS + o) * 2u;
                    score[h] += dot(queries[at], key_low) + dot(queries[at + 1u], key_high);
                }
            }
            for (var h = 0u; h < HEADS; h++) {
                let value = capped(score[h]);
                weights[h * PAGE + j] = value;
                seen[h / 4u][h % 4u] = max(seen[h / 4u][h % 4u], value);
            }
        }
        for (var f = 0u; f < FOURS; f++) {
            seen[f] = max_all4(lane, seen[f]);
            sum[f] *= exp(top[f] - seen[f]);
        }
        for (var h = 0u; h < HEADS; h++) {
            let next = seen[h / 4u][h % 4u];
            let shrink = exp(top[h / 4u][h % 4u] - next);
            for (var item = 0u; item < ITEMS; item++) {
                low[h * ITEMS + item] *= shrink;
                high[h * ITEMS + item] *= shrink;
            }
            for (var j = start + lane.index; j < here; j += WG) {
                let weight = exp(weights[h * PAGE + j] - next);
                weights[h * PAGE + j] = weight;
                sum[h / 4u][h % 4u] += weight;
            }
        }
        top = seen;
        workgroupBarrier();
        if (part < PARTS) {
            for (var j = start + part; j < here; j += PARTS) {
                for (var item = 0u; item < ITEMS; item++) {
                    let o = min(oct + item * WG, OCTS - 1u);
                    let value = v[kv_oct(page_head, j, o)];
                    let scale = kv_scale(v[kv_factor(page_head, j, o / KV_BLOCK)], j, o / KV_BLOCK);
                    let value_low = kv_low(value, scale);
                    let value_high = kv_high(value, scale);
                    for (var h = 0u; h < HEADS; h++) {
                        let weight = weights[h * PAGE + j];
                        low[h * ITEMS + item] += value_low * weight;
                        high[h * ITEMS + item] += value_high * weight;
                    }
                }
            }
        }
        workgroupBarrier();
    }

    for (var f = 0u; f < FOURS; f++) {
        sum[f] = sum_all4(lane, sum[f]);
    }
    for (var h = 0u; h < HEADS; h++) {
        for (var item = 0u; item < ITEMS; item++) {
            var a = low[h * ITEMS + item];
            var b = high[h * ITEMS + item];
            if (PARTS > 1u) {
                parts_low[lane.index] = a;
                parts_high[lane.index] = b;
                workgroupBarrier();
                if (part == 0u) {
                    for (var i = 1u; i < PARTS; i++) {
                        a += parts_low[i * OCTS + oct];
                        b += parts_high[i * OCTS + oct];
                    }
                }
                workgroupBarrier();
            }
            let o = oct + item * WG;
            if (h < heads && part == 0u && o < OCTS) {
                finish(t, group, head + h, o * 8u, a, b, top[h / 4u][h % 4u], sum[h / 4u][h % 4u]);
            }
        }
    }
    // The padding of the row stays zero, whatever the memory held before.
    if (group.x == 0u && group.z == 0u) {
        for (var i = p.width + lane.index; i < p.pitch; i += lane.count) {
            y[t * p.pitch + i] = 0.0;
        }
    }
}
