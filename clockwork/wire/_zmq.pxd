"""The functions of libzmq that code without Python calls."""

cdef extern from "zmq_api.h" nogil:
    ctypedef struct clockwork_zmq_api:
        void *msg_init
        void *msg_init_size
        void *msg_init_data
        void *msg_recv
        void *msg_send
        void *msg_copy
        void *msg_move
        void *msg_close
        void *msg_data
        void *msg_size
        void *msg_more
        void *msg_get
        void *msg_gets
        void *send
        void *getsockopt
        void *last_error

cdef class Functions:
    cdef const clockwork_zmq_api *table
