//! Consumer groups: the group says which parts are ours, PostgreSQL says where they are read from. So a change of the group is only
//! noted here, and answered by the next assignment, when the parts are claimed (or given up) there. Meanwhile librdkafka waits.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext, RebalanceProtocol};
use rdkafka::error::KafkaResult;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use rdkafka::types::RDKafkaRespErr;
use tokio::sync::mpsc;

use crate::source::Rebalance;

/// What the group has asked for.
#[derive(Default)]
pub struct Group {
    state: Mutex<State>,
    /// The source goes away, and nobody would answer.
    is_closing: AtomicBool,
}

#[derive(Default)]
struct State {
    /// The loader, once it has joined.
    listener: Option<mpsc::UnboundedSender<Rebalance>>,
    /// What librdkafka waits for.
    unanswered: Vec<Rebalance>,
    /// Parts that the group has given to us.
    parts: BTreeSet<i32>,
}

impl Group {
    /// From now on changes are told.
    pub fn listen(&self) -> mpsc::UnboundedReceiver<Rebalance> {
        let (sender, receiver) = mpsc::unbounded_channel();
        self.state.lock().unwrap_or_else(PoisonError::into_inner).listener = Some(sender);
        receiver
    }

    pub fn close(&self) {
        self.is_closing.store(true, Relaxed);
    }

    /// Called by librdkafka while the consumer is polled.
    pub fn rebalance<C: ConsumerContext>(
        &self,
        consumer: &BaseConsumer<C>,
        code: RDKafkaRespErr,
        list: &TopicPartitionList,
    ) -> KafkaResult<()> {
        let parts = list.elements().iter().map(|element| element.partition()).collect();
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let change = match code {
            _ if self.is_closing.load(Relaxed) || state.listener.is_none() => {
                return match consumer.rebalance_protocol() {
                    RebalanceProtocol::Cooperative => consumer.incremental_unassign(list),
                    _ => consumer.unassign(),
                };
            }
            RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS => Rebalance::Assigned(parts),
            _ if consumer.assignment_lost() => Rebalance::Lost(parts),
            _ => Rebalance::Revoked(parts),
        };
        match &change {
            Rebalance::Assigned(parts) => state.parts.extend(parts),
            Rebalance::Revoked(parts) | Rebalance::Lost(parts) => {
                parts.iter().for_each(|part| _ = state.parts.remove(part))
            }
        }
        if let Some(listener) = &state.listener {
            let _ = listener.send(change.clone());
        }
        state.unanswered.push(change);
        Ok(())
    }

    /// Answers the group, then reads what is ours of `starts` from there, and nothing else. `current`: what is read now; afterwards what
    /// is read then.
    pub fn assign<C: ConsumerContext>(
        &self,
        consumer: &BaseConsumer<C>,
        topic: &str,
        starts: &[(i32, i64)],
        current: &mut BTreeSet<i32>,
    ) -> KafkaResult<()> {
        let (unanswered, parts) = {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            (std::mem::take(&mut state.unanswered), state.parts.clone())
        };
        let starts: Vec<(i32, i64)> = starts.iter().copied().filter(|(part, _)| parts.contains(part)).collect();
        let unassign = |given_up: Vec<i32>, current: &mut BTreeSet<i32>| {
            given_up.iter().for_each(|part| _ = current.remove(part));
            consumer.incremental_unassign(&list(topic, given_up.into_iter().map(|part| (part, Offset::Invalid)))?)
        };
        for change in unanswered {
            match change {
                // They follow below, with the others.
                Rebalance::Assigned(_) => consumer.incremental_assign(&TopicPartitionList::new())?,
                Rebalance::Revoked(parts) | Rebalance::Lost(parts) => {
                    unassign(parts.into_iter().filter(|part| current.contains(part)).collect(), current)?;
                }
            }
        }
        if !current.is_empty() {
            unassign(current.iter().copied().collect(), current)?;
        }
        if !starts.is_empty() {
            current.extend(starts.iter().map(|(part, _)| *part));
            let positions = starts.iter().map(|(part, start)| (*part, Offset::Offset(*start)));
            consumer.incremental_assign(&list(topic, positions)?)?;
        }
        Ok(())
    }
}

fn list(topic: &str, parts: impl Iterator<Item = (i32, Offset)>) -> KafkaResult<TopicPartitionList> {
    let mut list = TopicPartitionList::new();
    for (part, offset) in parts {
        list.add_partition_offset(topic, part, offset)?;
    }
    Ok(list)
}
