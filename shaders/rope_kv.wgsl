// q'[t, h, :] = R(pos_t) q[t, h, :]; page[pos_t] <- R(pos_t) k[t, :, :], v[t, :, :]
//
// Grid   flat over n_tokens x (heads + 2 kv_heads) x stored_pairs: one invocation per pair.
// Links  step, lane_thread, kv_*
//
// Rotates neighbouring pairs (2 i, 2 i + 1) by the angle pos * freq_i (Su et al., RoFormer);
// models with halves rotated have their rows reordered at load. Sine and cosine are not
// computed here, where drivers differ, but come from two tables made on the host in f64:
// position pos = FINE a + b turns by the product of the rotations for FINE a and for b.
// Pairs beyond `rotated` pass unchanged; those that only fill up a stored head are zero.
struct Params {
    heads: u32,
    kv_heads: u32,
    pairs: u32,         // head_dim / 2
    rotated: u32,       // pairs that turn
    stored_pairs: u32,  // padded head_dim / 2, in q' and in pages
    pitch: u32,         // of a row of qkv, in pairs
    q_pitch: u32,       // of a row of q', in pairs
}

@group(0) @binding(0) var<storage, read> qkv: array<vec2<f32>>;         // [T, (heads + 2 kv_heads) head_dim]
@group(0) @binding(1) var<storage, read> rope: array<vec2<f32>>;        // [FINE + ceil(ctx / FINE), rotated] cos, sin
@group(0) @binding(2) var<storage, read_write> q: array<vec2<f32>>;     // [T, heads, padded head_dim]
@group(0) @binding(3) var<storage, read_write> k: array<KvPair>;        // [pages, kv_heads, PAGE, padded head_dim]
@group(0) @binding(4) var<storage, read_write> v: array<KvPair>;        // [pages, kv_heads, PAGE, padded head_dim]
@group(0) @binding(5) var<uniform> p: Params;

fn turn(a: vec2<f32>, by: vec2<f32>) -> vec2<f32> {
    return vec2<f32>(a.x * by.x - a.y * by.y, a.x * by.y + a.y * by.x);
}

fn kernel(group: vec3<u32>, team: Team, lane: Lane) {
    let all_heads = p.heads + 2u * p.kv_heads;
    let t = team.index / (all_heads * p.stored_pairs);
    let head = team.index / p.stored_pairs % all_heads;  // queries, then keys, then values
    let pair = team.index % p.stored_pairs;
    if (t >= n_tokens()) {
        return;
    }
    let position = token_position(t);
    var value = vec2<f32>(0.0);
    if (pair < p.pairs) {
        value = qkv[t * p.pitch + head * p.pairs + pair];
    }
    if (head < p.heads + p.kv_heads && pair < p.rotated) {
        let fine = rope[(position % FINE) * p.rotated + pair];
        let coarse = rope[(FINE + position / FINE) * p.rotated + pair];
        value = turn(value, turn(fine, coarse));
    }
    if (head < p.heads) {
        q[t * p.q_pitch + head * p.stored_pairs + pair] = value;
        return;
    }
    let kv_head = (head - p.heads) % p.kv_heads;
    let page = page_of(token_sequence(t), position / PAGE);
    let at = ((page * p.kv_heads + kv_head) * PAGE + position % PAGE) * p.stored_pairs + pair;
    if (head < p.heads + p.kv_heads) {
        k[at] = kv_pack(value);
    } else {
        v[at] = kv_pack(value);
    }
}
