// groups <- the rows of [T, CHOSEN], sorted by the experts that they chose, and in groups of up to SIZE
//
// Grid   one workgroup.
// Links  step, lane_workgroup
//
// An expert's weights then serve all the rows that chose it. Words: 0 groups, 1 where the rows begin; four
// words for each group from word 4 on, which are the expert, its first row, the row after its last,
// counted over those sorted, and nothing; the rows. An expert's rows stay in their order, so that two
// runs are equal: each invocation looks for the rows of its experts, of which the workgroup brings some
// at a time to its memory, first to count and then to place them.
struct Params {
    most: u32,  // groups, at most
}

@group(0) @binding(0) var<storage, read> routes: array<f32>;        // [T, numbers and weights]
@group(0) @binding(1) var<storage, read_write> groups: array<u32>;
@group(0) @binding(2) var<uniform> p: Params;

const ROUTE_PITCH = (2u * CHOSEN + 31u) / 32u * 32u;
const OWN = (EXPERTS + WG - 1u) / WG;  // experts of an invocation
const QUADS = 2u * WG;                 // fours of rows that are brought at a time
const NOBODY = 0xffffffffu;

var<workgroup> brought: array<vec4<u32>, QUADS>;
var<workgroup> counts: array<u32, EXPERTS>;
var<workgroup> starts: array<u32, EXPERTS>;

fn expert_of(row: u32, rows: u32) -> u32 {
    if (row >= rows) {
        return NOBODY;
    }
    return u32(routes[row / CHOSEN * ROUTE_PITCH + row % CHOSEN]);
}

fn bring(lane: Lane, first: u32, rows: u32) {
    workgroupBarrier();
    for (var i = lane.index; i < QUADS; i += WG) {
        let row = first + i * 4u;
        brought[i] = vec4<u32>(
            expert_of(row, rows),
            expert_of(row + 1u, rows),
            expert_of(row + 2u, rows),
            expert_of(row + 3u, rows),
        );
    }
    workgroupBarrier();
}

fn kernel(group: vec3<u32>, team: Team, lane: Lane) {
    let rows_at = 4u + p.most * 4u;
    let rows = n_tokens() * CHOSEN;
    var found: array<u32, OWN>;
    for (var first = 0u; first < rows; first += QUADS * 4u) {
        bring(lane, first, rows);
        let quads = min(QUADS, (rows - first + 3u) / 4u);
        for (var i = 0u; i < quads; i++) {
            let four = brought[i];
            for (var e = 0u; e < OWN; e++) {
                let hits = select(vec4<u32>(0u), vec4<u32>(1u), four == vec4<u32>(lane.index + e * WG));
                found[e] += hits.x + hits.y + hits.z + hits.w;
            }
        }
    }
    for (var e = 0u; e < OWN; e++) {
        if (lane.index + e * WG < EXPERTS) {
            counts[lane.index + e * WG] = found[e];
        }
    }
    workgroupBarrier();
    if (lane.index == 0u) {
        var made = 0u;
        var start = 0u;
        for (var expert = 0u; expert < EXPERTS; expert++) {
            starts[expert] = start;
            let end = start + counts[expert];
            while (start < end && made < p.most) {
                let at = 4u + made * 4u;
                groups[at] = expert;
                groups[at + 1u] = start;
                groups[at + 2u] = min(start + SIZE, end);
                start = groups[at + 2u];
                made++;
            }
        }
        groups[0] = made;
        groups[1] = rows_at;
    }
    workgroupBarrier();
    for (var e = 0u; e < OWN; e++) {
        found[e] = rows_at;
        if (lane.index + e * WG < EXPERTS) {
            found[e] += starts[lane.index + e * WG];
        }
    }
    for (var first = 0u; first < rows; first += QUADS * 4u) {
        bring(lane, first, rows);
        let quads = min(QUADS, (rows - first + 3u) / 4u);
        for (var i = 0u; i < quads; i++) {
            let four = brought[i];
            for (var e = 0u; e < OWN; e++) {
                let hits = four == vec4<u32>(lane.index + e * WG);
                if (any(hits)) {
                    for (var j = 0u; j < 4u; j++) {
                        if (hits[j]) {
                            groups[found[e]] = first + i * 4u + j;
                            found[e]++;
                        }
                    }
                }
            }
        }
    }
}
