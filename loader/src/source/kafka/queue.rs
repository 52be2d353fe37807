//! Messages of assigned parts, many at a call. The safe interface of the client library takes them one by one, with three looks
//! at the clock and three allocations for each, which was a third of what the whole loader needed for a message
//! (docs/benchmarks.md). The library can return an array of them; this module is the only one of the loader that is `unsafe`.
//!
//! The parts' queues are forwarded to one of our own, so that errors, statistics and logins, which come by the consumer's
//! queue, never are among the messages. Everything here is called by the thread of the source only.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString, c_int};
use std::ptr::{self, NonNull};
use std::slice;
use std::time::Duration;

use rdkafka::bindings::{
    rd_kafka_consume_batch_queue, rd_kafka_header_get_all, rd_kafka_headers_t, rd_kafka_message_destroy,
    rd_kafka_message_headers, rd_kafka_message_t, rd_kafka_message_timestamp, rd_kafka_queue_destroy,
    rd_kafka_queue_forward, rd_kafka_queue_get_partition, rd_kafka_queue_new, rd_kafka_queue_t, rd_kafka_resp_err_t,
    rd_kafka_timestamp_type_t,
};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::RDKafkaErrorCode;

use super::context::Context;
use crate::message::{Message, headers_as_json};

/// Messages of one call.
const MESSAGES: usize = 1_000;

/// A queue that assigned parts are read from. It has to be dropped before the client.
pub(super) struct Queue {
    native: NonNull<rd_kafka_queue_t>,
    messages: Vec<*mut rd_kafka_message_t>,
}

// SAFETY: the library's queues may be used from any thread; the pointers in `messages` are only set during a call.
unsafe impl Send for Queue {}

/// What stands in the queue in place of a message.
#[derive(Clone, Copy, Debug)]
pub(super) struct Failure {
    pub part: i32,
    /// Where the part is read next.
    pub offset: i64,
    pub code: RDKafkaErrorCode,
}

impl Queue {
    pub(super) fn new(consumer: &BaseConsumer<Context>) -> Self {
        // SAFETY: the client lives as long as the consumer; a queue is always returned.
        let native = unsafe { rd_kafka_queue_new(consumer.client().native_ptr()) };
        Self {
            native: NonNull::new(native).expect("a queue is always made"),
            messages: vec![ptr::null_mut(); MESSAGES],
        }
    }

    /// The messages of a part come here from now on, and those that wait for somebody; until its assignment ends.
    pub(super) fn take(&self, consumer: &BaseConsumer<Context>, topic: &str, part: i32) {
        let topic = CString::new(topic).expect("a topic that has parts has no NUL in its name");
        // SAFETY: the client is alive, the name ends in NUL. The part's queue is counted: ours is a reference to give back.
        unsafe {
            let queue = rd_kafka_queue_get_partition(consumer.client().native_ptr(), topic.as_ptr(), part);
            if !queue.is_null() {
                rd_kafka_queue_forward(queue, self.native.as_ptr());
                rd_kafka_queue_destroy(queue);
            }
        }
    }

    /// Hands over up to `limit` messages, waiting at most `wait` until all of them are there. Returns how many there were, with
    /// what stood among them in place of a message.
    pub(super) fn poll(
        &mut self,
        limit: usize,
        wait: Duration,
        mut each: impl FnMut(Result<Message<'_>, Failure>),
    ) -> usize {
        let limit = limit.clamp(1, MESSAGES);
        let wait = c_int::try_from(wait.as_millis()).unwrap_or(c_int::MAX);
        // SAFETY: the array has room for `limit` pointers.
        let count =
            unsafe { rd_kafka_consume_batch_queue(self.native.as_ptr(), wait, self.messages.as_mut_ptr(), limit) };
        let count = usize::try_from(count).unwrap_or(0);
        for message in &self.messages[..count] {
            // SAFETY: the library filled in `count` valid messages, which are ours until we destroy them.
            let guard = unsafe { Taken(&**message, *message) };
            guard.hand_over(&mut each);
        }
        count
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        // SAFETY: it is ours, and nothing uses it any more.
        unsafe { rd_kafka_queue_destroy(self.native.as_ptr()) };
    }
}

/// Name and value.
type Header<'a> = (&'a str, Option<&'a [u8]>);

/// A message of the library, destroyed when dropped.
struct Taken<'a>(&'a rd_kafka_message_t, *mut rd_kafka_message_t);

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        // SAFETY: each message is taken once, and nothing borrowed from it is left.
        unsafe { rd_kafka_message_destroy(self.1) };
    }
}

impl Taken<'_> {
    fn hand_over(&self, each: &mut impl FnMut(Result<Message<'_>, Failure>)) {
        let message = self.0;
        if message.err != rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
            let (part, offset, code) = (message.partition, message.offset, message.err.into());
            return each(Err(Failure { part, offset, code }));
        }
        let headers = self.headers().map(|headers| headers_as_json(headers.into_iter()));
        // SAFETY: both point into the message, with these lengths.
        let (key, value) =
            unsafe { (bytes(message.key.cast(), message.key_len), bytes(message.payload.cast(), message.len)) };
        let (part, offset, time) = (message.partition, message.offset, self.time());
        each(Ok(Message { part, offset, time, key, value, headers: headers.as_deref() }));
    }

    /// Milliseconds since 1970.
    fn time(&self) -> Option<i64> {
        let mut kind = rd_kafka_timestamp_type_t::RD_KAFKA_TIMESTAMP_NOT_AVAILABLE;
        // SAFETY: the message is alive.
        let time = unsafe { rd_kafka_message_timestamp(self.1, &mut kind) };
        (kind != rd_kafka_timestamp_type_t::RD_KAFKA_TIMESTAMP_NOT_AVAILABLE && time != -1).then_some(time)
    }

    fn headers(&self) -> Option<Vec<Header<'_>>> {
        let mut headers: *mut rd_kafka_headers_t = ptr::null_mut();
        // SAFETY: the message is alive; it keeps the headers, and so do the names and values below.
        let code = unsafe { rd_kafka_message_headers(self.1, &mut headers) };
        if code != rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
            return None;
        }
        let mut list = Vec::new();
        loop {
            let (mut name, mut value, mut size) = (ptr::null(), ptr::null(), 0);
            // SAFETY: an index behind the last header is answered with an error; else the name ends in NUL.
            unsafe {
                let code = rd_kafka_header_get_all(headers, list.len(), &mut name, &mut value, &mut size);
                if code != rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
                    return Some(list);
                }
                list.push((CStr::from_ptr(name).to_str().unwrap_or("\u{fffd}"), bytes(value.cast(), size)));
            }
        }
    }
}

/// # Safety
/// A pointer that is not NULL points to so many bytes, which live as long as the message.
unsafe fn bytes<'a>(start: *const u8, length: usize) -> Option<&'a [u8]> {
    // SAFETY: promised by the caller.
    (!start.is_null()).then(|| unsafe { slice::from_raw_parts(start, length) })
}
