// Lanes: the team is the whole workgroup, reduced by a tree in workgroup memory; needs
// nothing beyond WebGPU's core. WG is a power of two.
struct Team {
    index: u32,  // of this team in the grid's x and y
    count: u32,  // teams in the grid's x and y
}

struct Lane {
    index: u32,  // of this invocation in its team
    count: u32,  // invocations in a team
}

var<workgroup> lane_tree: array<vec4<f32>, WG>;

fn sum_all4(lane: Lane, v: vec4<f32>) -> vec4<f32> {
    lane_tree[lane.index] = v;
    workgroupBarrier();
    for (var half = WG / 2u; half > 0u; half /= 2u) {
        if (lane.index < half) {
            lane_tree[lane.index] += lane_tree[lane.index + half];
        }
        workgroupBarrier();
    }
    let sum = lane_tree[0];
    workgroupBarrier();
    return sum;
}

fn sum_all(lane: Lane, v: f32) -> f32 { return sum_all4(lane, vec4<f32>(v, 0.0, 0.0, 0.0)).x; }

fn max_all4(lane: Lane, v: vec4<f32>) -> vec4<f32> {
    lane_tree[lane.index] = v;
    workgroupBarrier();
    for (var half = WG / 2u; half > 0u; half /= 2u) {
        if (lane.index < half) {
            lane_tree[lane.index] = max(lane_tree[lane.index], lane_tree[lane.index + half]);
        }
        workgroupBarrier();
    }
    let top = lane_tree[0];
    workgroupBarrier();
    return top;
}

@compute @workgroup_size(WG)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
) {
    kernel(group, Team(group.x + group.y * groups.x, groups.x * groups.y), Lane(index, WG));
}
