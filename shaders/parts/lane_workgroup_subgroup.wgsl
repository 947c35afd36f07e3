// Lanes: the team is the whole workgroup; subgroups reduce in registers, then one value per
// subgroup meets in workgroup memory. Right for any subgroup size.
struct Team {
    index: u32,  // of this team in the grid's x and y
    count: u32,  // teams in the grid's x and y
}

struct Lane {
    index: u32,      // of this invocation in its team
    count: u32,      // invocations in a team
    subgroup: u32,   // of this invocation's subgroup in the workgroup
    subgroups: u32,  // subgroups in the workgroup
    first: bool,     // whether this invocation speaks for its subgroup
}

var<workgroup> lane_partial: array<vec4<f32>, WG>;

fn sum_all4(lane: Lane, v: vec4<f32>) -> vec4<f32> {
    let part = subgroupAdd(v);
    if (lane.first) {
        lane_partial[lane.subgroup] = part;
    }
    workgroupBarrier();
    var sum = vec4<f32>(0.0);
    for (var i = 0u; i < lane.subgroups; i++) {
        sum += lane_partial[i];
    }
    workgroupBarrier();
    return sum;
}

fn sum_all(lane: Lane, v: f32) -> f32 { return sum_all4(lane, vec4<f32>(v, 0.0, 0.0, 0.0)).x; }

fn max_all4(lane: Lane, v: vec4<f32>) -> vec4<f32> {
    let part = subgroupMax(v);
    if (lane.first) {
        lane_partial[lane.subgroup] = part;
    }
    workgroupBarrier();
    var top = lane_partial[0];
    for (var i = 1u; i < lane.subgroups; i++) {
        top = max(top, lane_partial[i]);
    }
    workgroupBarrier();
    return top;
}

@compute @workgroup_size(WG)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
    @builtin(subgroup_invocation_id) subgroup_index: u32,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(num_subgroups) subgroups: u32,
) {
    let team = Team(group.x + group.y * groups.x, groups.x * groups.y);
    kernel(group, team, Lane(index, WG, subgroup, subgroups, subgroup_index == 0u));
}
