// groups <- the rows of [T, CHOSEN], sorted by the experts that they chose, and in groups of up to SIZE
//
// Grid   one workgroup.
// Links  step, lane_workgroup
//
// An expert's weights then serve all the rows that chose it. Words: 0 groups, 1 where the rows begin; four
// words for each group from word 4 on, which are the expert, its first row, the row after its last,
// counted over those sorted, and nothing; the rows. An expert's rows stay in their order, so that two
// runs are equal.
struct Params {
    experts: u32,
    most: u32,  // groups, at most
}

@group(0) @binding(0) var<storage, read> routes: array<f32>;        // [T, numbers and weights]
@group(0) @binding(1) var<storage, read_write> groups: array<u32>;
@group(0) @binding(2) var<uniform> p: Params;

const ROUTE_PITCH = (2u * CHOSEN + 31u) / 32u * 32u;

var<workgroup> counts: array<u32, MOST_EXPERTS>;
var<workgroup> starts: array<u32, MOST_EXPERTS>;

fn kernel(group: vec3<u32>, team: Team, lane: Lane) {
    let rows_at = 4u + p.most * 4u;
    let rows = n_tokens() * CHOSEN;
    for (var expert = lane.index; expert < p.experts; expert += lane.count) {
        var count = 0u;
        for (var i = 0u; i < rows; i++) {
            count += select(0u, 1u, u32(routes[i / CHOSEN * ROUTE_PITCH + i % CHOSEN]) == expert);
        }
        counts[expert] = count;
    }
    workgroupBarrier();
    if (lane.index == 0u) {
        var found = 0u;
        var start = 0u;
        for (var expert = 0u; expert < p.experts; expert++) {
            starts[expert] = start;
            let end = start + counts[expert];
            while (start < end && found < p.most) {
                let at = 4u + found * 4u;
                groups[at] = expert;
                groups[at + 1u] = start;
                groups[at + 2u] = min(start + SIZE, end);
                start = groups[at + 2u];
                found++;
            }
        }
        groups[0] = found;
        groups[1] = rows_at;
    }
    workgroupBarrier();
    for (var expert = lane.index; expert < p.experts; expert += lane.count) {
        var next = rows_at + starts[expert];
        for (var i = 0u; i < rows; i++) {
            if (u32(routes[i / CHOSEN * ROUTE_PITCH + i % CHOSEN]) == expert) {
                groups[next] = i;
                next++;
            }
        }
    }
}
