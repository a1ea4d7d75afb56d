// libjpeg's decompressor as Clockwork calls it: the ABI of version 6.2, which libjpeg-turbo keeps.
//
// The wheels of Pillow bring the library without headers, so its structures are declared here. The library
// compares its version and the size of Decompress with its own before it touches a structure; see
// load_jpeg().
#pragma once

#include <cstddef>

namespace clockwork::device::jpeg {

inline constexpr int VERSION = 62;
inline constexpr int GREY = 1, RGB = 2, YCC = 3;  // values of libjpeg's J_COLOR_SPACE
inline constexpr int HEADER_OK = 1;
inline constexpr std::size_t MESSAGE_BYTES = 200;  // libjpeg's JMSG_LENGTH_MAX

struct Decompress;

struct Errors {
    void (*error_exit)(Decompress*);  // must not return
    void (*emit_message)(Decompress*, int level);
    void (*output_message)(Decompress*);
    void (*format_message)(Decompress*, char* text);
    void (*reset)(Decompress*);
    int code;
    union {
        int numbers[8];
        char text[80];
    } parameters;
    int trace_level;
    long warnings;
    const char* const* messages;
    int last_message;
    const char* const* more_messages;
    int first_more, last_more;
};

struct Progress {
    void (*monitor)(Decompress*);
    long pass_counter, pass_limit;
    int completed_passes, total_passes;
};

struct Source {
    const unsigned char* next;
    std::size_t left;
    void (*init)(Decompress*);
    int (*fill)(Decompress*);
    void (*skip)(Decompress*, long bytes);
    int (*resync)(Decompress*, int);
    void (*term)(Decompress*);
};

struct Component {
    int id, index, h_samples, v_samples, quantisation_table, dc_table, ac_table;
    unsigned width_in_blocks, height_in_blocks;
    int scaled_size;
    unsigned width, height;
    int is_needed, mcu_width, mcu_height, mcu_blocks, mcu_sample_width, last_column_width, last_row_height;
    void* quantisation;
    void* dct;
};

struct Decompress {
    Errors* errors;
    void* memory;
    Progress* progress;
    void* client_data;
    int is_decompressor, global_state;
    Source* source;
    unsigned width, height;
    int component_count, color_space, out_color_space;
    unsigned scale_num, scale_denom;
    double output_gamma;
    int buffered_image, raw_data_out, dct_method, fancy_upsampling, block_smoothing, quantize_colors, dither_mode;
    int two_pass_quantize, color_count, enable_1pass, enable_external, enable_2pass;
    unsigned output_width, output_height;
    int out_color_components, output_components, rec_outbuf_height, actual_color_count;
    unsigned char** colormap;
    unsigned output_scanline;
    int input_scan_number;
    unsigned input_row;
    int output_scan_number;
    unsigned output_row;
    int (*coefficient_bits)[64];
    void* quantisation_tables[4];
    void* dc_tables[4];
    void* ac_tables[4];
    int data_precision;
    Component* components;
    int progressive, arithmetic;
    unsigned char arith_dc_l[16], arith_dc_u[16], arith_ac_k[16];
    unsigned restart_interval;
    int saw_jfif;
    unsigned char jfif_major, jfif_minor, density_unit;
    unsigned short x_density, y_density;
    int saw_adobe;
    unsigned char adobe_transform;
    int ccir601;
    void* markers;
    int max_h, max_v, min_dct_size;
    unsigned total_rows;
    unsigned char* range_limit;
    int scan_component_count;
    void* scan_components[4];
    unsigned mcus_per_row, mcu_rows;
    int mcu_blocks;
    int mcu_membership[10];
    int ss, se, ah, al;
    int unread_marker;
    void* modules[11];
};

// The functions of the library.
struct Library {
    Errors* (*std_error)(Errors*) = nullptr;
    void (*create)(Decompress*, int version, std::size_t bytes) = nullptr;
    int (*read_header)(Decompress*, int require_image) = nullptr;
    int (*start)(Decompress*) = nullptr;
    unsigned (*read_scanlines)(Decompress*, unsigned char** rows, unsigned count) = nullptr;
    int (*resync)(Decompress*, int) = nullptr;
    void (*destroy)(Decompress*) = nullptr;
};

}  // namespace clockwork::device::jpeg
