.intel_syntax noprefix
.text
copy:
 push rbx
 push rbp
 mov rbx, rdi
 mov rbp, rsi
1: test rbp, rbp
 jz 2f
 mov rsi, [rbx]
 mov rdi, [rbx+16]
 mov rcx, [rbx+8]
 shr rcx, 3
 rep movsq
 add rbx, 40
 dec rbp
 jmp 1b
2: mov rax, rbp
 pop rbp
 pop rbx
 ret
