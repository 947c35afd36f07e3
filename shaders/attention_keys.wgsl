// y[t, h, :] = sum_j softmax_j(scale q[t, h, :] . k[j, :]) v[j, :], j <= pos_t
//
// Grid   (kv_heads x blocks of HEADS query heads, n_tokens, splits of the span).
// Links  step, lane_workgroup*, kv_*, span_*, cap_*, pages_*
//
// As `attention`, with nothing shared: each invocation attends to every WG-th key with a
// softmax of its own, and the results are joined once at the end. Queries and sums of all HEADS
// stay with the invocation, so that a key costs the loads of its own bytes and no more: what
// counts where a load from workgroup memory is as dear as any, on software adapters. All
// loops over OCTS must be unrolled for that, so that HEADS x OCTS has to be small.
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
const FOURS = (HEADS + 3u) / 4u;  // heads, four at a time
const BLOCKS = (OCTS + KV_BLOCK - 1u) / KV_BLOCK;  // of a head, each with a scale

var<workgroup> scores: array<f32, HEADS * PAGE>;  // each invocation uses its own
var<workgroup> parts_low: array<vec4<f32>, OCTS * WG>;
var<workgroup> parts_high: array<vec4<f32>, OCTS * WG>;

fn kernel(group: vec3<u32>, team: Team, lane: Lane) {
    let t = group.y;
    let kv_head = group.x / p.blocks;
    let first = group.x % p.blocks * HEADS;     // among the heads of this KV head
    let heads = min(HEADS, p.group_heads - first);
    let head = kv_head * p.group_heads + first; // among all heads

    // The first and the last four of each eight values: smaller arrays stay in registers.
    var q_low: array<vec4<f32>, HEADS * OCTS>;
    var q_high: array<vec4<f32>, HEADS * OCTS>;
    for (var h = 0u; h < HEADS; h++) {
        // Heads that only fill the last block repeat another.
        let row = t * p.q_pitch / 4u + (head + min(h, heads - 1u)) * OCTS * 2u;
        for (var o = 0u; o < OCTS; o++) {
            q_low[h * OCTS + o] = q[row + o * 2u] * p.scale;
            q_high[h * OCTS + o] = q[row + o * 2u + 1u] * p.scale;
        }
    }
    var low: array<vec4<f32>, HEADS * OCTS>;
    var high: array<vec4<f32>, HEADS * OCTS>;
    var top: array<vec4<f32>, FOURS>;
    var sum: array<vec4<f32>, FOURS>;
    for (var f = 0u; f < FOURS; f++) {
        top[f] = vec4<f32>(LOWEST);
    }

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
        var next = top;
        for (var j = start + lane.index; j < here; j += WG) {
            var score: array<f32, HEADS>;
            var scales: array<f32, BLOCKS>;
            for (var b = 0u; b < BLOCKS; b++) {
                scales[b] = kv_scale(k[kv_factor(page_head, j, b)], j, b);
            }
            for (var o = 0u; o < OCTS; o++) {
                let scale = scales[o / KV_BLOCK];
                let key = k[kv_oct(page_head, j, o)];
                let key_low = kv_low(key, scale);
                let key_high = kv_high(key, scale);
                for (var h = 0u; h < HEADS; h++) {
                    let at = h * OCTS + o;
                    score[h] += dot(q_low[at], key_low) + dot(q_high[at], key_high);
                }
            }
            for (var h = 0u; h < HEADS; h++) {
                let value = capped(score[h]);
                scores[h * PAGE + j] = value;
                next[h / 4u][h % 4u] = max(next[h / 4u][h % 4u], value);
            }
        }
        for (var h = 0u; h < HEADS; h++) {
            let shrink = exp(top[h / 4u][h % 4u] - next[h / 4u][h % 4u]);
            sum[h / 4u][h % 4u] *= shrink;
            for (var o = 0u; o < OCTS; o++) {
                low[h * OCTS + o] *= shrink;
                high[h * OCTS + o] *= shrink;
            }
        }
        top = next;
        for (var j = start + lane.index; j < here; j += WG) {
            var weight: array<f32, HEADS>;
            for (var h = 0u; h < HEADS; h++) {
                weight[h] = exp(scores[h * PAGE + j] - top[h / 4u][h % 4u]);
                sum[h / 4u][h % 4u] += weight[h];
            }
            var scales: array<f32, BLOCKS>;
            for (var b = 0u; b < BLOCKS; b++) {
                scales[b] = kv_scale(v[kv_factor(page_head, j, b)], j, b);
            }
            for (var o = 0u; o < OCTS; o++) {
                let scale = scales[o / KV_BLOCK];
                let value = v[kv_oct(page_head, j, o)];
                let value_low = kv_low(value, scale);
                let value_high = kv_high(value, scale);
                for (var h = 0u; h < HEADS; h++) {
                    low[h * OCTS + o] += value_low * weight[h];
                    high[h * OCTS + o] += value_high * weight[h];
                }
            }
        }
    }

    var best: array<vec4<f32>, FOURS>;
    for (var f = 0u; f < FOURS; f++) {
        best[f] = max_all4(lane, top[f]);
        top[f] = exp(top[f] - best[f]);
        sum[f] = sum_all4(lane, sum[f] * top[f]);
    }
    for (var h = 0u; h < HEADS; h++) {
        for (var o = 0u; o < OCTS; o++) {
            parts_low[o * WG + lane.index] = low[h * OCTS + o] * top[h / 4u][h % 4u];
            parts_high[o * WG + lane.index] = high[h * OCTS + o] * top[h / 4u][h % 4u];
        }
        workgroupBarrier();
        for (var o = lane.index; h < heads && o < OCTS; o += WG) {
            var a = vec4<f32>(0.0);
            var b = vec4<f32>(0.0);
            for (var i = 0u; i < WG; i++) {
                a += parts_low[o * WG + i];
                b += parts_high[o * WG + i];
            }
            finish(t, group, head + h, o * 8u, a, b, best[h / 4u][h % 4u], sum[h / 4u][h % 4u]);
        }
        workgroupBarrier();
    }
    // The padding of the row stays zero, whatever the memory held before.
    if (group.x == 0u && group.z == 0u) {
        for (var i = p.width + lane.index; i < p.pitch; i += lane.count) {
            y[t * p.pitch + i] = 0.0;
        }
    }
}
