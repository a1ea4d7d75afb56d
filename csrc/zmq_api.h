/* The functions of libzmq that native code calls, and the types of their arguments.
 *
 * pyzmq brings the library without a header; the functions are looked up in it (clockwork/wire/_zmq.pyx), and
 * declared here as zmq.h of libzmq 4 has them. A message is opaque: 64 bytes, aligned as a pointer. */
#ifndef CLOCKWORK_ZMQ_API_H
#define CLOCKWORK_ZMQ_API_H

#include <stddef.h>

typedef union clockwork_zmq_message {
    unsigned char bytes[64];
    void* alignment;
} clockwork_zmq_message;

enum {
    CLOCKWORK_ZMQ_DONTWAIT = 1,
    CLOCKWORK_ZMQ_SNDMORE = 2,
    CLOCKWORK_ZMQ_FD = 14,
    CLOCKWORK_ZMQ_EVENTS = 15,
    CLOCKWORK_ZMQ_POLLIN = 1,
    CLOCKWORK_ZMQ_SRCFD = 2, /* property of a message: the descriptor from which it was read */
    CLOCKWORK_ZMQ_EVENT_ACCEPTED = 0x0020,
    CLOCKWORK_ZMQ_EVENT_DISCONNECTED = 0x0200,
};

/* Pointers to the functions zmq_<name> of libzmq. */
typedef struct clockwork_zmq_api {
    int (*msg_init)(clockwork_zmq_message* message);
    int (*msg_init_size)(clockwork_zmq_message* message, size_t size);
    int (*msg_init_data)(clockwork_zmq_message* message, void* data, size_t size,
                         void (*let_go)(void* data, void* hint), void* hint);
    int (*msg_recv)(clockwork_zmq_message* message, void* socket, int flags);
    int (*msg_send)(clockwork_zmq_message* message, void* socket, int flags);
    int (*msg_copy)(clockwork_zmq_message* target, clockwork_zmq_message* source);
    int (*msg_move)(clockwork_zmq_message* target, clockwork_zmq_message* source);
    int (*msg_close)(clockwork_zmq_message* message);
    void* (*msg_data)(clockwork_zmq_message* message);
    size_t (*msg_size)(const clockwork_zmq_message* message);
    int (*msg_more)(const clockwork_zmq_message* message);
    int (*msg_get)(const clockwork_zmq_message* message, int property);
    const char* (*msg_gets)(const clockwork_zmq_message* message, const char* property);
    int (*send)(void* socket, const void* data, size_t size, int flags);
    int (*getsockopt)(void* socket, int option, void* value, size_t* size);
    int (*last_error)(void);
} clockwork_zmq_api;

#endif
