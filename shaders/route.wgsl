// y[t, c] = number, y[t, CHOSEN + c] = weight of the expert with the c-th largest of logits x[t, :]
//
// Grid   flat over n_tokens: one workgroup a token.
// Links  step, lane_workgroup*
//
// The weights are the softmax of all logits (Shazeer et al. 2017), or, normalised, of those chosen.
// Of equal logits the first is chosen.
struct Params {
    normalised: u32,  // 1 where the weights of those chosen are to sum up to one
    pitch: u32,       // of a row of x, in values
    y_pitch: u32,     // of a row of y, in values
}

@group(0) @binding(0) var<storage, read> x: array<f32>;        // [T, EXPERTS]
@group(0) @binding(1) var<storage, read_write> y: array<f32>;  // [T, 2 CHOSEN]
@group(0) @binding(2) var<uniform> p: Params;

const OWN = (EXPERTS + WG - 1u) / WG;  // logits of an invocation
const LOWEST = -3.0e38;                // of a logit
const TAKEN = -3.3e38;                 // in place of one that was chosen

fn max_all(lane: Lane, v: f32) -> f32 { return max_all4(lane, vec4<f32>(v, TAKEN, TAKEN, TAKEN)).x; }

fn kernel(group: vec3<u32>, team: Team, lane: Lane) {
    let t = team.index;
    if (t >= n_tokens()) {
        return;
    }
    var own: array<f32, OWN>;
    var best = TAKEN;
    for (var i = 0u; i < OWN; i++) {
        let expert = lane.index + i * WG;
        own[i] = TAKEN;
        if (expert < EXPERTS) {
            own[i] = max(x[t * p.pitch + expert], LOWEST);
        }
        best = max(best, own[i]);
    }
    let top = max_all(lane, best);
    var share = 0.0;
    for (var i = 0u; i < OWN; i++) {
        share += select(0.0, exp(own[i] - top), lane.index + i * WG < EXPERTS);
    }
    let all = sum_all(lane, share);

    var number = 0.0;  // what this invocation writes
    var weight = 0.0;
    var chosen = 0.0;
    for (var c = 0u; c < CHOSEN; c++) {
        // Of what is left: the largest logit, and the first expert that has it.
        var mine = TAKEN;
        for (var i = 0u; i < OWN; i++) {
            mine = max(mine, own[i]);
        }
        let value = max_all(lane, mine);
        var first = TAKEN;
        for (var i = 0u; i < OWN; i++) {
            first = max(first, select(TAKEN, -f32(lane.index + i * WG), own[i] == value));
        }
        // Numbers stay below the count, whatever the logits are.
        let taken = min(u32(max(-max_all(lane, first), 0.0)), EXPERTS - 1u);
        for (var i = 0u; i < OWN; i++) {
            own[i] = select(own[i], TAKEN, lane.index + i * WG == taken);
        }
        let likely = exp(value - top);
        chosen += likely;
        number = select(number, f32(taken), lane.index == c);
        weight = select(weight, likely, lane.index == c);
    }
    let total = select(all, chosen, p.normalised == 1u);
    if (lane.index < CHOSEN) {
        y[t * p.y_pitch + lane.index] = number;
        y[t * p.y_pitch + CHOSEN + lane.index] = weight / total;
    }
    // The padding of the row stays zero, whatever the memory held before.
    for (var i = 2u * CHOSEN + lane.index; i < p.y_pitch; i += lane.count) {
        y[t * p.y_pitch + i] = 0.0;
    }
}
