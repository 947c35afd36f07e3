// y[t, c] = number, y[t, CHOSEN + c] = weight of the expert with the c-th largest of logits x[t, :]
//
// Grid   flat over n_tokens: one workgroup a token.
// Links  step, lane_workgroup*
//
// The weights are the softmax of all logits (Shazeer et al. 2017), or, normalised, of those chosen.
// Of equal logits the first is chosen.
struct Params {
    experts: u32,
    normalised: u32,  // 1 where the weights of those chosen are to sum up to one
    pitch: u32,       // of a row of x, in values
    y_pitch: u32,     // of a row of y, in values
}

@group(0) @binding(0) var<storage, read> x: array<f32>;        // [T, experts]
@group(0) @binding(1) var<storage, read_write> y: array<f32>;  // [T, 2 CHOSEN]
@group(0) @binding(2) var<uniform> p: Params;

const OWN = (MOST_EXPERTS + WG - 1u) / WG;  // logits of an invocation, at most
const LOWEST = -3.4e38;

fn max_all(lane: Lane, v: f32) -> f32 { return max_all4(lane, vec4<f32>(v, LOWEST, LOWEST, LOWEST)).x; }

fn kernel(group: vec3<u32>, team: Team, lane: Lane) {
    let t = team.index;
    if (t >= n_tokens()) {
        return;
    }
    var own: array<f32, OWN>;
    var best = LOWEST;
    for (var i = 0u; i < OWN; i++) {
        let expert = lane.index + i * WG;
        own[i] = LOWEST;
        if (expert < p.experts) {
            own[i] = max(x[t * p.pitch + expert], LOWEST);
        }
        best = max(best, own[i]);
    }
    let top = max_all(lane, best);
    var share = 0.0;
    for (var i = 0u; i < OWN; i++) {
        share += select(0.0, exp(own[i] - top), lane.index + i * WG < p.experts);
    }
    let all = sum_all(lane, share);

    var numbers: array<u32, CHOSEN>;
    var weights: array<f32, CHOSEN>;
    var chosen = 0.0;
    for (var c = 0u; c < CHOSEN; c++) {
        // Of what is left: the largest logit, and the first expert that has it.
        var mine = LOWEST;
        var first = p.experts;
        for (var i = 0u; i < OWN; i++) {
            let expert = lane.index + i * WG;
            var left = expert < p.experts;
            for (var before = 0u; before < c; before++) {
                left = left && numbers[before] != expert;
            }
            if (left && (first == p.experts || own[i] > mine)) {
                mine = own[i];
                first = expert;
            }
        }
        let value = max_all(lane, mine);
        let place = max_all(lane, select(LOWEST, -f32(first), first < p.experts && mine == value));
        // Numbers stay below the count, whatever the logits are.
        numbers[c] = min(u32(max(-place, 0.0)), p.experts - 1u);
        weights[c] = exp(value - top);
        chosen += weights[c];
    }
    let total = select(all, chosen, p.normalised == 1u);
    for (var i = lane.index; i < p.y_pitch; i += lane.count) {
        var value = 0.0;
        for (var c = 0u; c < CHOSEN; c++) {
            value = select(value, f32(numbers[c]), i == c);
            value = select(value, weights[c] / total, i == CHOSEN + c);
        }
        y[t * p.y_pitch + i] = value;
    }
}
