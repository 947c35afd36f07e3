// groups <- the rows of [T, CHOSEN], sorted by the experts that they chose, and in groups of up to SIZE
//
// Grid   one workgroup.
// Links  step, lane_workgroup
//
// An expert's weights then serve all the rows that chose it. Words: 0 groups, 1 where the rows begin; four
// words for each group from word 4 on, which are the expert, its first row, the row after its last,
// counted over those sorted, and nothing; the rows. Those of an expert come in any order: what a
// product computes for a row does not depend on its neighbours.
struct Params {
    most: u32,  // groups, at most
}

@group(0) @binding(0) var<storage, read> routes: array<f32>;        // [T, numbers and weights]
@group(0) @binding(1) var<storage, read_write> groups: array<u32>;
@group(0) @binding(2) var<uniform> p: Params;

const ROUTE_PITCH = (2u * CHOSEN + 31u) / 32u * 32u;

var<workgroup> counts: array<atomic<u32>, EXPERTS>;  // rows of an expert, and then where its next one goes

fn expert_of(row: u32) -> u32 { return u32(routes[row / CHOSEN * ROUTE_PITCH + row % CHOSEN]); }

fn kernel(group: vec3<u32>, team: Team, lane: Lane) {
    let rows_at = 4u + p.most * 4u;
    let rows = n_tokens() * CHOSEN;
    for (var expert = lane.index; expert < EXPERTS; expert += WG) {
        atomicStore(&counts[expert], 0u);
    }
    workgroupBarrier();
    for (var row = lane.index; row < rows; row += WG) {
        atomicAdd(&counts[expert_of(row)], 1u);
    }
    workgroupBarrier();
    if (lane.index == 0u) {
        var made = 0u;
        var start = 0u;
        for (var expert = 0u; expert < EXPERTS; expert++) {
            let end = start + atomicExchange(&counts[expert], start);
            while (start < end && made < p.most) {
                let at = 4u + made * 4u;
                groups[at] = expert;
                groups[at + 1u] = start;
                groups[at + 2u] = min(start + SIZE, end);
                start = min(start + SIZE, end);
                made++;
            }
        }
        groups[0] = made;
        groups[1] = rows_at;
    }
    workgroupBarrier();
    for (var row = lane.index; row < rows; row += WG) {
        groups[rows_at + atomicAdd(&counts[expert_of(row)], 1u)] = row;
    }
}
