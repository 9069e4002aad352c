//! Members of consumer groups: join, synchronise, live, leave; and the view from outside.

use std::time::{Duration, Instant};

use bytes::Bytes;
use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::describe_groups_response::{DescribedGroup, DescribedGroupMember};
use kafka_protocol::messages::join_group_response::JoinGroupResponseMember;
use kafka_protocol::messages::leave_group_response::MemberResponse;
use kafka_protocol::messages::list_groups_response::ListedGroup;
use kafka_protocol::messages::{
    DescribeGroupsRequest, DescribeGroupsResponse, GroupId, HeartbeatRequest, HeartbeatResponse,
    JoinGroupRequest, JoinGroupResponse, LeaveGroupRequest, LeaveGroupResponse, ListGroupsRequest,
    ListGroupsResponse, SyncGroupRequest, SyncGroupResponse,
};
use kafka_protocol::protocol::StrBytes;

use super::{Client, code};
use crate::broker::groups::group::{Group, JoinStep, Newcomer};
use crate::broker::groups::member::{Introduction, Joined, Member, SyncAnswer};
use crate::broker::limits::{MEMBER_METADATA_BYTES_MAX, SESSION_TIMEOUT_MS};
use crate::broker::state::Shared;

/// Joins a group; answers when the group has agreed.
pub(super) async fn join(
    broker: &Shared,
    client: &Client,
    client_id: &str,
    request: JoinGroupRequest,
    version: i16,
) -> JoinGroupResponse {
    match begin_join(broker, client, client_id, &request, version) {
        Err(error) => refuse_join(error, request.member_id, version),
        Ok(JoinStep::ComeBack(id)) => refuse_join(
            ResponseError::MemberIdRequired,
            StrBytes::from_string(id),
            version,
        ),
        Ok(JoinStep::Wait(answer)) => {
            // A sender that is gone without a word means that the member asked again elsewhere.
            match answer.await.unwrap_or(Err(ResponseError::RebalanceInProgress)) {
                Ok(joined) => describe_join(joined, version),
                Err(error) => refuse_join(error, request.member_id, version),
            }
        }
    }
}

fn begin_join(
    broker: &Shared,
    client: &Client,
    client_id: &str,
    request: &JoinGroupRequest,
    version: i16,
) -> Result<JoinStep, ResponseError> {
    const SINCE_ID_REQUIRED: i16 = 4;
    let introduction = introduce(client, client_id, request)?;
    let now = Instant::now();
    let mut state = broker.lock();
    let who = if request.member_id.is_empty() {
        state.groups.room_for_member()?;
        let fresh_id = state.groups.new_member_id(client_id);
        Newcomer::Unknown {
            fresh_id,
            must_return: version >= SINCE_ID_REQUIRED,
        }
    } else {
        Newcomer::Known {
            member_id: request.member_id.to_string(),
        }
    };
    let group = state.groups.get_or_create(request.group_id.as_str(), now)?;
    group.join(who, introduction, now)
}

fn introduce(
    client: &Client,
    client_id: &str,
    request: &JoinGroupRequest,
) -> Result<Introduction, ResponseError> {
    if !SESSION_TIMEOUT_MS.contains(&request.session_timeout_ms) {
        return Err(ResponseError::InvalidSessionTimeout);
    }
    let said: usize = request
        .protocols
        .iter()
        .map(|protocol| protocol.name.len() + protocol.metadata.len())
        .sum();
    if said > MEMBER_METADATA_BYTES_MAX {
        return Err(ResponseError::InconsistentGroupProtocol);
    }
    let millis = |ms: i32| Duration::from_millis(u64::try_from(ms).unwrap_or(0));
    let session_timeout = millis(request.session_timeout_ms);
    Ok(Introduction {
        instance: request.group_instance_id.as_ref().map(own_text),
        client_id: client_id.to_owned(),
        client_host: client.host.clone(),
        protocol_type: own_text(&request.protocol_type),
        // Copies: a slice would keep the whole request alive.
        protocols: request
            .protocols
            .iter()
            .map(|protocol| {
                (
                    own_text(&protocol.name),
                    Bytes::copy_from_slice(&protocol.metadata),
                )
            })
            .collect(),
        session_timeout,
        rebalance_timeout: millis(request.rebalance_timeout_ms).max(session_timeout),
    })
}

fn own_text(text: &StrBytes) -> StrBytes {
    StrBytes::from_string(text.to_string())
}

fn describe_join(joined: Joined, version: i16) -> JoinGroupResponse {
    const SINCE_INSTANCE: i16 = 5;
    const SINCE_TYPE: i16 = 7;
    let members = joined.members.into_iter().map(|peer| {
        let member = JoinGroupResponseMember::default()
            .with_member_id(StrBytes::from_string(peer.member_id))
            .with_metadata(peer.metadata);
        if version >= SINCE_INSTANCE {
            member.with_group_instance_id(peer.instance)
        } else {
            member
        }
    });
    let response = JoinGroupResponse::default()
        .with_generation_id(joined.generation)
        .with_protocol_name(Some(joined.protocol))
        .with_leader(StrBytes::from_string(joined.leader))
        .with_member_id(StrBytes::from_string(joined.member_id))
        .with_members(members.collect());
    if version >= SINCE_TYPE {
        response.with_protocol_type(Some(joined.protocol_type))
    } else {
        response
    }
}

fn refuse_join(error: ResponseError, member_id: StrBytes, version: i16) -> JoinGroupResponse {
    const SINCE_NULLABLE_NAME: i16 = 7;
    const NO_GENERATION: i32 = -1;
    JoinGroupResponse::default()
        .with_error_code(error.code())
        .with_generation_id(NO_GENERATION)
        .with_member_id(member_id)
        .with_protocol_name((version < SINCE_NULLABLE_NAME).then(StrBytes::default))
}

/// Hands in, or asks for, the leader's decision; answers when it is there.
pub(super) async fn sync(broker: &Shared, request: SyncGroupRequest, version: i16) -> SyncGroupResponse {
    const SINCE_TYPE: i16 = 5;
    let answer = match begin_sync(broker, &request) {
        Ok(answer) => answer.await.unwrap_or(Err(ResponseError::RebalanceInProgress)),
        Err(error) => Err(error),
    };
    match answer {
        Err(error) => SyncGroupResponse::default().with_error_code(error.code()),
        Ok(synced) => {
            let response = SyncGroupResponse::default().with_assignment(synced.assignment);
            if version < SINCE_TYPE {
                return response;
            }
            response
                .with_protocol_type(Some(synced.protocol_type))
                .with_protocol_name(Some(synced.protocol))
        }
    }
}

fn begin_sync(broker: &Shared, request: &SyncGroupRequest) -> Result<SyncAnswer, ResponseError> {
    let mut state = broker.lock();
    let group = state
        .groups
        .get_mut(request.group_id.as_str())
        .ok_or(ResponseError::UnknownMemberId)?;
    let differs = |said: &Option<StrBytes>, known: &StrBytes| said.as_ref().is_some_and(|said| said != known);
    if differs(&request.protocol_type, group.protocol_type())
        || differs(&request.protocol_name, group.protocol())
    {
        return Err(ResponseError::InconsistentGroupProtocol);
    }
    group.check_instance(request.member_id.as_str(), request.group_instance_id.as_ref())?;
    let assignments = request
        .assignments
        .iter()
        .map(|assignment| {
            (
                assignment.member_id.clone(),
                Bytes::copy_from_slice(&assignment.assignment),
            )
        })
        .collect();
    group.sync(
        request.member_id.as_str(),
        request.generation_id,
        assignments,
        Instant::now(),
    )
}

/// Notes a sign of life.
pub(super) fn heartbeat(broker: &Shared, request: &HeartbeatRequest) -> HeartbeatResponse {
    let mut state = broker.lock();
    let alive = match state.groups.get_mut(request.group_id.as_str()) {
        Some(group) => group
            .check_instance(request.member_id.as_str(), request.group_instance_id.as_ref())
            .and_then(|()| {
                group.heartbeat(request.member_id.as_str(), request.generation_id, Instant::now())
            }),
        None => Err(ResponseError::UnknownMemberId),
    };
    HeartbeatResponse::default().with_error_code(code(alive))
}

/// Lets members go.
pub(super) fn leave(broker: &Shared, request: &LeaveGroupRequest, version: i16) -> LeaveGroupResponse {
    const SINCE_SEVERAL: i16 = 3;
    let now = Instant::now();
    let mut state = broker.lock();
    let mut group = state.groups.get_mut(request.group_id.as_str());
    let mut leave = |member_id: &str, instance: Option<&StrBytes>| match &mut group {
        Some(group) => code(group.leave(member_id, instance, now)),
        None => ResponseError::UnknownMemberId.code(),
    };
    if version < SINCE_SEVERAL {
        return LeaveGroupResponse::default().with_error_code(leave(request.member_id.as_str(), None));
    }
    let members = request.members.iter().map(|member| {
        MemberResponse::default()
            .with_member_id(member.member_id.clone())
            .with_group_instance_id(member.group_instance_id.clone())
            .with_error_code(leave(
                member.member_id.as_str(),
                member.group_instance_id.as_ref(),
            ))
    });
    LeaveGroupResponse::default().with_members(members.collect())
}

/// Shows groups with their members.
pub(super) fn describe(
    broker: &Shared,
    request: DescribeGroupsRequest,
    version: i16,
) -> DescribeGroupsResponse {
    let state = broker.lock();
    let groups = request.groups.into_iter().map(|id| {
        let described = DescribedGroup::default().with_group_id(id.clone());
        match state.groups.get(id.as_str()) {
            None => described.with_group_state(StrBytes::from_static_str("Dead")),
            Some(group) => described
                .with_group_state(StrBytes::from_static_str(group.phase().name()))
                .with_protocol_type(group.protocol_type().clone())
                .with_protocol_data(group.protocol().clone())
                .with_members(describe_members(group, version)),
        }
    });
    DescribeGroupsResponse::default().with_groups(groups.collect())
}

fn describe_members(group: &Group, version: i16) -> Vec<DescribedGroupMember> {
    const SINCE_INSTANCE: i16 = 4;
    let describe = |(id, member): (&str, &Member)| {
        let introduction = &member.introduction;
        let described = DescribedGroupMember::default()
            .with_member_id(StrBytes::from_string(id.to_owned()))
            .with_client_id(StrBytes::from_string(introduction.client_id.clone()))
            .with_client_host(StrBytes::from_string(introduction.client_host.clone()))
            .with_member_metadata(introduction.metadata(group.protocol()))
            .with_member_assignment(member.assignment.clone());
        if version >= SINCE_INSTANCE {
            described.with_group_instance_id(introduction.instance.clone())
        } else {
            described
        }
    };
    group.members().map(describe).collect()
}

/// Lists groups, all or those in certain states.
pub(super) fn list(broker: &Shared, request: &ListGroupsRequest, version: i16) -> ListGroupsResponse {
    const SINCE_STATE: i16 = 4;
    let state = broker.lock();
    let wanted = |name: &str| {
        request.states_filter.is_empty() || request.states_filter.iter().any(|s| s.as_str() == name)
    };
    let groups = state
        .groups
        .iter()
        .filter(|(_, group)| wanted(group.phase().name()))
        .map(|(id, group)| {
            let listed = ListedGroup::default()
                .with_group_id(GroupId(StrBytes::from_string(id.to_owned())))
                .with_protocol_type(group.protocol_type().clone());
            if version >= SINCE_STATE {
                listed.with_group_state(StrBytes::from_static_str(group.phase().name()))
            } else {
                listed
            }
        });
    ListGroupsResponse::default().with_groups(groups.collect())
}
